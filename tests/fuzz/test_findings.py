"""What the runs have found, and the sizes that are bounded: one message each, and what its error says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_parablock.checkpointing.sidecars import KEY, Entry
from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.compression import Sparse, TopK
from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import SAID, Reply, memory_for
from lightning_parablock.desk.tensors import chunk_reply
from lightning_parablock.elastic.gathered import unpacked
from lightning_parablock.elastic.journal import FILE_NAME, read_lines
from lightning_parablock.elastic.roll import nobody_listens
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.errors import (
    CallOrderError,
    CheckpointError,
    ConfigurationError,
    ProtocolError,
    UnreachableError,
)
from lightning_parablock.meeting.introductions import Introduction, is_dead, this_system
from lightning_parablock.membership.signs import SIGN_BYTES, Word
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.system.bounded_json import MOST_JSON_BYTES
from tests.fuzz.desks import _receive, _request, _serve
from tests.fuzz.files import _ENTRY
from tests.fuzz.target import message
from tests.fuzz.targets import TARGETS

DEEP = b"[" * 100_000
NO_ADDRESSES = (
    "host",
    "host:",
    "host:x",
    "127.0.0.1:-1",
    "a b:1",
    "\0:1",
    "x" * 300 + ":1",
)


@pytest.mark.parametrize(
    ("name", "said", "named"),
    [
        ("prepare-call", {}, "the call of site 'b' is malformed: it has no 'generation'"),
        ("prepare-call", {"generation": float("inf")}, "the call of site 'b' is malformed: cannot convert"),
        ("decision-call", {"generation": 3, "decision": {"log": []}}, "a decision is malformed: tuple index"),
        ("enter-call", {"site": "e", "facts": None}, "the call of site 'b' is malformed"),
        ("commit-call", {"key": [0]}, "the call of site 'b': the key of an exchange is malformed: not enough values"),
        (
            "piece-call",
            {"source": {"label": None}},
            "the call of site 'b': a piece of server state that is asked for is malformed",
        ),
        ("gather-call", {"number": 3}, "the call of site 'b' is malformed"),
        ("report-reply", {}, "the report of site 'b' is malformed: it has no 'report'"),
        ("newest-reply", {"landed": [0, 0]}, "the answer of host:1 to 'newest' is malformed: it has no 'keys'"),
        ("enter-reply", {"sites": 3}, "the answer of site 'b' to a guest is malformed"),
        ("reach-call", {"desks": {str(n): "h:1" for n in range(5000)}}, "a call names 5000 desks to try"),
        ("introduction", {"rank": 0}, "it is malformed"),
        ("introduction", {"rank": "0", "n_ranks": 2, "site": None, "host": "h", "pid": 1}, "a value has another type"),
        ("addresses", [["here", 80]], "the addresses of "),
        ("addresses", [["::1", 80_000]], "80000 is no port"),
        ("addresses", [["::1\0", 80]], "is no address"),
        ("addresses", [["%:1", 80]], "'%:1' is no address"),
    ],
)
def test_a_malformed_message_is_refused_with_its_sender_and_what_is_wrong(name: str, said: Any, named: str) -> None:
    with pytest.raises(ProtocolError, match=named.replace("(", r"\(")):
        TARGETS[name].parse(message(said))


def test_a_log_that_is_no_log_is_refused() -> None:
    said: Any = [{"generation": 0}]
    with pytest.raises(ProtocolError, match="the record of a generation is malformed: it has no 'members'"):
        MembershipLog.from_json(said)


@pytest.mark.parametrize("sizes", [[[0, 4]], [[0, 2]], [[0, -1], [1, 4]], [[0, 1], [0, 2]], [[0, "x"]], 3])
def test_payloads_that_do_not_fill_a_collectives_result_are_refused(sizes: Any) -> None:
    with pytest.raises(ProtocolError, match="a collective's result from site 'b' is malformed"):
        unpacked(Reply({"is_complete": True, "sizes": sizes}, b"abc"), "site 'b'")


def test_a_copy_of_state_must_fill_its_message() -> None:
    target = TARGETS["backup-pieces"]
    with pytest.raises(ProtocolError, match="states 12 bytes, and has 13"):
        target.parse(target.seeds[0] + b"x")


def test_a_block_that_the_model_lacks_is_no_block() -> None:
    with pytest.raises(CallOrderError, match="there is no block 9; the model has 2"):
        TARGETS["commit-call"].parse(message({"key": [0, 9], "first_byte": 0, "chunk_bytes": 4}))


def test_a_part_of_a_tensor_has_whole_numbers() -> None:
    with pytest.raises(ProtocolError, match="must say first_byte and chunk_bytes"):
        chunk_reply({"first_byte": float("inf"), "chunk_bytes": 4}, torch.zeros(2), "version")


# --- desks ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", NO_ADDRESSES)
def test_what_is_no_address_cannot_be_reached(address: str) -> None:
    with pytest.raises(UnreachableError) as refused:
        call(address, "ping", {}, limit_s=1.0)
    assert refused.value.kind == "refused"
    assert not nobody_listens(address)


def test_an_answer_whose_details_are_none_is_refused() -> None:
    said = b'{"kind":"no","text":"not here","details":3}'
    head = f"HTTP/1.1 400 Bad\r\n{SAID}: {len(said)}\r\nContent-Length: {len(said)}\r\n\r\n".encode()
    with pytest.raises(UnreachableError, match="the error in the answer is malformed"):
        _receive(head + said)


def test_a_header_takes_no_memory() -> None:
    def resident_bytes() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    before = resident_bytes()
    memory = memory_for(1 << 32)
    assert len(memory) == 1 << 32
    assert resident_bytes() - before < 1 << 28


def test_json_has_its_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MOST_JSON_BYTES < 1 << 30
    said = b'{"a":"0123456789"}'
    head = f"POST /echo HTTP/1.1\r\n{SAID}: {len(said)}\r\nContent-Length: {len(said)}\r\n\r\n".encode()
    assert b"HTTP/1.1 200" in _serve(head + said)
    monkeypatch.setattr("lightning_parablock.desk.listener.MOST_JSON_BYTES", 10)
    assert b"a message of 18 bytes is longer than the 10 bytes" in _serve(head + said)


# --- ranks ------------------------------------------------------------------------------------------------------------


def test_places_outside_a_record_are_refused() -> None:
    codec = codec_of(TopK(0.05))
    payload = torch.full((codec.payload_bytes(1024),), 0x7F, dtype=torch.uint8)
    with pytest.raises(ProtocolError, match="names scalars 32639 to 32639 of a record of 1024"):
        codec.decode(payload, torch.empty(1024))


def test_values_behind_the_end_of_a_part_are_refused() -> None:
    codec, values = codec_of(Sparse()), torch.ones(1000)
    payload = torch.empty(codec.payload_bytes(1000), dtype=torch.uint8)
    codec.encode(values, payload)
    codec.decode(payload, values)
    payload[4:] = 0xFF  # the last place of each group: scalars 992 to 1023
    with pytest.raises(ProtocolError, match="values behind the end of a part of 1000 scalars"):
        codec.decode(payload, values)


def test_a_sign_of_another_version_says_so() -> None:
    with pytest.raises(ProtocolError, match="a sign of life of unknown kind 9; install the same"):
        Word.unpack(torch.full((SIGN_BYTES,), 9, dtype=torch.uint8))


@pytest.mark.parametrize("process", ["pid x on host", "pid on host", f"pid {1 << 80} on host"])
def test_a_seat_without_a_process_is_not_known_to_be_dead(process: str) -> None:
    assert not is_dead(f"{process} ({this_system()})")


@pytest.mark.parametrize("text", [b"", b"\xff", DEEP, b"[]", b'"x"', b"1" * 5000])
def test_an_introduction_is_read_or_refused(text: bytes) -> None:
    with pytest.raises(ProtocolError, match="the introduction of rank 1 is malformed"):
        Introduction.from_json(text, "the introduction of rank 1")


# --- files ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [b"\xff\n", DEEP + b"\n", b'{"time":"0001-01-01T00:00:00+23:00"}\n', b'{"time":3}\n'])
def test_a_line_that_is_not_one_of_a_journal_is_named(tmp_path: Path, text: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(text)
    with pytest.raises(ConfigurationError, match="line 1 of the journal"):
        read_lines(tmp_path / FILE_NAME)


@pytest.mark.parametrize("text", [b"\xff", DEEP, b"3", b"{}", b'{"run":"a","ancestors":3}'])
def test_a_note_that_cannot_be_read_is_one_of_an_unknown_run(tmp_path: Path, text: bytes) -> None:
    (tmp_path / "note").write_bytes(text)
    assert RunRecord(tmp_path / "note").lineage() == ("unknown",)


CHANGES = ({"save": "../other"}, {"save": ".."}, {"save": 3}, {"blocks": [[1]]}, {"round": None})


@pytest.mark.parametrize("change", CHANGES)
def test_the_entry_of_a_checkpoint_is_read_or_refused(change: dict[str, Any]) -> None:
    said = json.loads(json.dumps({**_ENTRY.as_dict(), **change}))
    with pytest.raises(CheckpointError, match=r"the entry of a\.ckpt is malformed|is no name of a save"):
        Entry.of({KEY: said}, "a.ckpt")


def test_many_calls_at_once_whose_answers_are_read_are_all_answered() -> None:
    """Their answers are longer than what the sockets hold: unread, they would wait for the desk's limit."""
    calls = 1000
    assert _serve(_request(b"{}", 2) * calls).count(b"HTTP/1.1 200") == calls
