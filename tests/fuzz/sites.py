"""What sites with elastic membership say to each other: reports, decisions, calls and their answers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import patch

import torch

from lightning_parablock.desk.message import Reply, decoded
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic import attempt, door, gathered, gathers, lighthouse
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.door import Door
from lightning_parablock.elastic.fetching import Fetcher
from lightning_parablock.elastic.gathers import Gathers
from lightning_parablock.elastic.giving import Giver, source_as_json
from lightning_parablock.elastic.herald import Backup, backup_message, backup_pieces
from lightning_parablock.elastic.reach import Reach
from lightning_parablock.elastic.round_starts import RoundStarts
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.errors import (
    CallOrderError,
    MembershipError,
    ProtocolError,
    RefusedError,
)
from lightning_parablock.regroup.log import MembershipLog, Record, Restored
from lightning_parablock.regroup.report import Decision, Report, Source, Standing
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.strategy.elastic_group import Agreed
from tests.elastic.seats import SITES, THREE, LoneSeat
from tests.fuzz.desks import call_of
from tests.fuzz.target import Target, message, said_and_body

_SECOND = Record(
    3,
    (0, 1, 3),
    (3,),
    (1, 0, 3),
    4,
    kept=(2, 1),
    sites={**SITES, 3: "d"},
    samples={3: 9},
    gone={2: "lost"},
    restored=(Restored(0, 2, ((1, 0), 0)), Restored(1, 2, None)),
)
_LOG = THREE.and_then(_SECOND)
_SOURCE = Source(0, 2, 1, ((1, 0), 0))
_STANDING = Standing(_LOG, (3, 0), {0: (((1, 0), 0), ((2, 1), 3))}, {(1, 2): (((-1, -1), 0),)})
_REPORTS = (Report("b", None, _STANDING, Standing(_LOG), 5, True, 6, 4, ("x",), ("x", "z")), Report("d", 3, None, None))
_DECISION = Decision(_SECOND, _LOG, {0: (1, 0), 1: (2, 1)}, 1, (_SOURCE, Source(1, 2, None, None)), {"x": "no id"})
_CANDIDATE = Candidate("b", "1", "host:1", run="run", client=1)


def _seat() -> LoneSeat:
    """Of site a, whose calls are refused."""
    seat = LoneSeat("a", THREE)
    refused = RefusedError("no calls here")
    seat.call = cast(Any, lambda *args, **options: (_ for _ in ()).throw(refused))
    return seat


def _call(data: bytes) -> Call:
    said, body = said_and_body(data)
    return call_of(decoded(said), body)


def _of_call(name: str, handler: Callable[[], Callable[[Call], Reply]], *seeds: bytes, more: Any = ()) -> Target:
    """A handler of a desk, made anew for each call."""
    return Target(name, lambda data: handler()(_call(data)), (ProtocolError, *more), seeds)


def _of_json(name: str, read: Callable[[Mapping[str, Any]], object], *said: Mapping[str, Any]) -> Target:
    return Target(name, lambda data: read(decoded(data)), (ProtocolError,), tuple(map(message, said)))


# --- regroups ---------------------------------------------------------------------------------------------------------


class _Staged:
    """In place of a fetcher: brings nothing."""

    def stage(self, decision: Decision, look: Callable[[], None]) -> None:
        look()

    def connect(self, decision: Decision, store: str, look: Callable[[], None]) -> Any:
        return SimpleNamespace(close=lambda: None)


def _answers() -> Answers:
    """Of a site that has acknowledged generation 3."""
    answers = Answers(_seat(), lambda decision: None)
    answers._seat.membership.seal(3)
    answers._seat.membership.acknowledge(_DECISION)
    answers._fetcher = cast(Any, _Staged())
    return answers


def _decide(call: Call) -> Reply:
    """With time for the thread that takes the decision."""
    answers = _answers()
    with patch.object(Call, "remaining_s", 5.0):
        return answers.decision(call)


def _note_list(data: bytes) -> object:
    with patch.object(lighthouse, "coordination", lambda: None):
        house = lighthouse.Lighthouse("here:1")
    member = SimpleNamespace(data=decoded(data).get("data"), replica_id="b 1")
    house._roll._is_gone = lambda desk: False
    house._note_list(SimpleNamespace(participants=[member], quorum_id=1), _CANDIDATE)
    return house._list


# --- what a member gives ----------------------------------------------------------------------------------------------


class _Held:
    """In place of the exchanges of a site."""

    log, staged = THREE, None

    def __init__(self) -> None:
        self.store = CommittedStore([torch.zeros(3), torch.zeros(2)])

    def commit_of(self, key: Any) -> torch.Tensor:
        return self.store.at(key)

    def state_of(self, source: Source) -> list[StatePiece]:
        if source.block != 0:
            raise CallOrderError("it is not here")
        return [StatePiece(0, "momentum", 0, torch.zeros(3))]

    def note_landed(self, client: int, key: Any, generation: int) -> None:
        pass

    def take_backup(self, block: int, server: int, label: Any, pieces: Any) -> None:
        list(pieces)


def _giver(name: str) -> Callable[[], Callable[[Call], Reply]]:
    return lambda: getattr(Giver(cast(Any, _Held())), name)


def _fetcher(reply: Reply) -> Fetcher:
    seat = _seat()
    seat.call = cast(Any, lambda *args, **options: reply)
    seat._addresses = {"b": "host:1"}
    fetcher = Fetcher(seat, cast(Any, None), cast(Any, None))
    fetcher._address = cast(Any, lambda decision, client: "host:1")
    fetcher._pull = cast(Any, lambda *args: torch.zeros(1))
    return fetcher


def _backup() -> bytes:
    backup = Backup(0, 1, ((1, 0), 0), lambda: None)
    return message(*backup_message(backup, [StatePiece(0, "momentum", 0, torch.zeros(3))]))


# --- collectives ------------------------------------------------------------------------------------------------------


class _Hub(LoneSeat):
    def describe(self, client: int) -> str:
        return f"client {client}"


def _gathers() -> Gathers:
    site = _Hub("a", THREE, lambda client, name: Reply({"is_complete": False}))
    return Gathers(site, 1.0, 1.0)


def _gather(call: Call) -> Reply:
    with patch.object(gathers, "_POLL_S", 0.0):
        return _gathers().answer_gather(call)


def _unpack(data: bytes) -> object:
    said, body = said_and_body(data)
    return gathered.unpacked(Reply(decoded(said), body), "site b")


def _door() -> Door:
    opened = Door(_seat())
    opened.open(b"")
    return opened


def _starts() -> RoundStarts:
    starts = RoundStarts(_seat())
    starts.keep(0, b"state")
    return starts


_PACKED = gathered.packed({0: b"one", 1: b"", 2: b"three"})

TARGETS = (
    _of_json("log", lambda said: MembershipLog.from_json(cast(Any, said.get("log"))), {"log": _LOG.to_json()}),
    _of_json("report", Report.from_json, *(report.to_json() for report in _REPORTS)),
    _of_json("decision", Decision.from_json, _DECISION.to_json()),
    _of_json("candidate", Candidate.from_json, _CANDIDATE.to_json()),
    Target(
        "lighthouse-list",
        _note_list,
        (ProtocolError,),
        (message({"data": {"parablock": _CANDIDATE.to_json(), "number": 1}}),),
    ),
    Target("agreed", Agreed.from_bytes, (ProtocolError,), (Agreed([("a", {0: b"x", 3: b""})]).to_bytes(),)),
    _of_json("report-reply", lambda said: attempt._report(_CANDIDATE, Reply(said)), {"report": _REPORTS[0].to_json()}),
    _of_call("prepare-call", lambda: _answers().prepare, message({"generation": 4}), more=(MembershipError,)),
    _of_call(
        "decision-call",
        lambda: _decide,
        message({"generation": 3, "decision": _DECISION.to_json(), "run": "r", "incarnations": {"0": "1", "1": "2"}}),
        more=(MembershipError, CallOrderError),
    ),
    _of_call(
        "connect-call", lambda: _answers().connect, message({"generation": 3, "store": "h:1"}), more=(MembershipError,)
    ),
    _of_call("open-call", lambda: _answers().open, message({"generation": 3}), more=(MembershipError, CallOrderError)),
    _of_call(
        "commit-call",
        _giver("_commit"),
        message({"key": [-1, 0], "first_byte": 0, "chunk_bytes": 4}),
        more=(CallOrderError,),
    ),
    _of_call("state-call", _giver("_state"), message({"source": source_as_json(_SOURCE)}), more=(CallOrderError,)),
    _of_call(
        "piece-call",
        _giver("_piece"),
        message({"source": source_as_json(_SOURCE), "index": 0, "first_byte": 0, "chunk_bytes": 4}),
        more=(CallOrderError,),
    ),
    _of_call(
        "landed-call", _giver("_landed"), message({"client": 1, "key": [1, 0], "generation": 0}), more=(RefusedError,)
    ),
    _of_call("backup-call", _giver("_backup"), _backup(), more=(RefusedError,)),
    Target(
        "backup-pieces",
        lambda data: backup_pieces(decoded(said_and_body(data)[0]), memoryview(said_and_body(data)[1])),
        (ProtocolError,),
        (_backup(),),
    ),
    _of_json(
        "newest-reply",
        lambda said: _fetcher(Reply(said))._newest("host:1"),
        {"landed": [1, 0], "keys": [[1, 0], [0, 1]], "record": _SECOND.to_json()},
    ),
    _of_json(
        "state-reply",
        lambda said: _fetcher(Reply(said))._state(_DECISION, _SOURCE, lambda: None),
        {"pieces": [[0, "momentum", 0]]},
    ),
    _of_call(
        "gather-call",
        lambda: _gather,
        message({"number": [0, 1], "what": "sum", "client": 1}, b"payload"),
        more=(RefusedError,),
    ),
    _of_call("kept-call", lambda: _gathers().answer_kept, message({"number": [0, 1]})),
    Target("gather-reply", _unpack, (ProtocolError,), (message(_PACKED.said, bytes(_PACKED.body)),)),
    _of_call(
        "enter-call",
        lambda: _door().answer_enter,
        message({"site": "b", "facts": {}}),
        more=(RefusedError,),
    ),
    _of_json(
        "enter-reply",
        lambda said: door._let_in(Reply(said), "b"),
        {"run": "run", "client": 3, "sites": [[0, "a"], [1, "b"]], "first_round": 0},
    ),
    _of_call("trainer-call", lambda: _starts().answer, message({"round": 0}), message({"round": 7})),
    _of_call("reach-call", lambda: Reach(_seat()).answer, message({"desks": {"b": "host:1", "c": "host:2"}})),
)
