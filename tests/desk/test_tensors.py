"""Tensors over real sockets: equal bits, resumed transfers, and donors that change, lie or fall silent."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.desk.tensors import as_message, chunk_reply, from_message, pull_tensor
from lightning_parablock.errors import ProtocolError, RefusedError, UnreachableError
from tests.desk.relay import Relay

CHUNK = 100_000


def values(n: int, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def donor(desk: Desk, tensor: Tensor, pace: Callable[[int], None] | None = None) -> list[int]:
    """Gives a tensor away; notes where each chunk that is asked for begins."""
    asked_for: list[int] = []

    def give(asked: Call) -> Reply:
        asked_for.append(asked.said["first_byte"])
        return chunk_reply(asked.said, tensor, "0", pace)

    desk.answer("w", give)
    return asked_for


@pytest.mark.parametrize(
    "tensor",
    [
        values(7).reshape(7, 1),
        values(64).reshape(4, 4, 4).transpose(0, 2),
        values(5).to(torch.bfloat16),
        torch.tensor(float("nan"), dtype=torch.float64),
        torch.tensor([True, False, True]),
        torch.tensor([-(2**63), 2**63 - 1]),
        torch.empty(0, 3),
        torch.empty(2, 0, dtype=torch.int8),
    ],
    ids=lambda tensor: f"{tensor.dtype} {tuple(tensor.shape)}",
)
def test_equal_bits_of_every_kind(desk: Desk, tensor: Tensor) -> None:
    desk.answer("echo", lambda asked: Reply(asked.said, asked.body))
    reply = call(desk.address, "echo", *as_message(tensor))
    donor(desk, tensor)
    for arrived in (from_message(reply.said, reply.body), pull_tensor(desk.address, "w", {}, 20, 16)):
        assert (arrived.dtype, arrived.shape) == (tensor.dtype, tensor.shape)
        assert torch.equal(arrived.nan_to_num(9), tensor.nan_to_num(9))
        arrived.zero_()  # it belongs to the receiver


def test_other_kinds_do_not_travel() -> None:
    with pytest.raises(TypeError, match="bits8 cannot be sent"):
        as_message(torch.empty(2, dtype=torch.bits8))


@pytest.mark.parametrize(
    "wrong",
    [
        {"checksum": 1},
        {"shape": [3]},
        {"shape": [-2]},
        {"shape": [1 << 47, 1 << 47]},
        {"shape": "2"},
        {"shape": [True, 2]},
        {"dtype": "storage"},
        {"dtype": None},
    ],
    ids=str,
)
def test_a_message_that_does_not_fit(wrong: dict[str, Any]) -> None:
    said, body = as_message(torch.ones(2))
    with pytest.raises(ProtocolError):
        from_message({**said, **wrong}, body)
    assert torch.equal(from_message(said, body), torch.ones(2))


def test_a_truth_value_that_is_neither_0_nor_1_is_refused(desk: Desk) -> None:
    said, body = as_message(torch.tensor([0, 1, 255], dtype=torch.uint8))
    with pytest.raises(ProtocolError, match="a truth value is neither 0 nor 1"):
        from_message({**said, "dtype": "bool"}, body)
    assert from_message(said, body).tolist() == [0, 1, 255]

    def give(asked: Call) -> Reply:
        reply = chunk_reply(asked.said, torch.tensor([0, 1, 255], dtype=torch.uint8), "0")
        return Reply({**reply.said, "dtype": "bool"}, reply.body)

    desk.answer("w", give)
    with pytest.raises(ProtocolError, match="a truth value is neither 0 nor 1"):
        pull_tensor(desk.address, "w", {}, 20, 2)


def test_chunks_are_asked_for_in_order(desk: Desk) -> None:
    tensor, paced = values(100_000), list[int]()
    asked_for = donor(desk, tensor, paced.append)
    looks: list[int] = []
    pulled = pull_tensor(desk.address, "w", {}, 20, CHUNK, look=lambda: looks.append(1), like=torch.empty(100_000))
    assert torch.equal(pulled, tensor)
    assert asked_for == [0, CHUNK, 2 * CHUNK, 3 * CHUNK]
    assert sum(paced) == 400_000 and max(paced) <= 65536 and looks  # the cap sees every byte before it leaves


def test_a_broken_transfer_continues_after_the_last_good_chunk(desk: Desk) -> None:
    tensor = values(100_000)
    asked_for = donor(desk, tensor)
    relay = Relay(desk.address, cut_after=(250_000, 50_000, 0, 120_000))
    assert torch.equal(pull_tensor(relay.address, "w", {}, 60, CHUNK), tensor)
    again = [first for index, first in enumerate(asked_for[1:]) if first == asked_for[index]]
    assert sorted(set(asked_for)) == [0, CHUNK, 2 * CHUNK, 3 * CHUNK] and asked_for == sorted(asked_for)
    assert set(again) == {2 * CHUNK, 3 * CHUNK} and relay.connections == 5
    relay.close()


def test_a_chunk_with_wrong_bytes_is_asked_for_again(desk: Desk) -> None:
    tensor = values(100_000)
    asked_for: list[int] = []

    def give(asked: Call) -> Reply:
        reply = chunk_reply(asked.said, tensor, "0")
        asked_for.append(asked.said["first_byte"])
        if len(asked_for) == 2:
            spoilt = bytearray(reply.body)
            spoilt[77] ^= 1
            return Reply(reply.said, spoilt)
        if len(asked_for) == 4:  # another place than the one asked for
            return chunk_reply({**asked.said, "first_byte": 0}, tensor, "0")
        return reply

    desk.answer("w", give)
    assert torch.equal(pull_tensor(desk.address, "w", {}, 20, CHUNK), tensor)
    assert asked_for == [0, CHUNK, CHUNK, 2 * CHUNK, 2 * CHUNK, 3 * CHUNK]


def test_a_donor_that_always_gives_wrong_bytes_ends_with_a_named_error(desk: Desk) -> None:
    tensor = values(1000)

    def give(asked: Call) -> Reply:
        reply = chunk_reply(asked.said, tensor, "0")
        return Reply({**reply.said, "checksum": 1}, reply.body) if asked.said["first_byte"] else reply

    desk.answer("w", give)
    with pytest.raises(UnreachableError, match=r"for 0\.3 s, after 1000 of 4000 bytes: wrong checksums"):
        pull_tensor(desk.address, "w", {}, 0.3, 1000)


def test_a_donor_that_falls_silent_ends_with_a_named_error(desk: Desk) -> None:
    tensor = values(100_000)
    donor(desk, tensor)
    relay = Relay(desk.address, silent_after=250_000)
    with pytest.raises(UnreachableError, match=r"for 0\.5 s, after 200000 of 400000 bytes: .* silent for") as raised:
        pull_tensor(relay.address, "w", {}, 0.5, CHUNK)
    assert raised.value.kind == "silent"
    relay.close()


def test_a_donor_that_was_never_there(desk: Desk) -> None:
    address = desk.address
    desk.close(0.1)
    with pytest.raises(UnreachableError, match=r"after 0 of an unknown number of bytes: .*cannot be reached"):
        pull_tensor(address, "w", {}, 0.3)


def assert_set(event: threading.Event) -> None:
    assert event.wait(10.0)


def test_a_donor_that_comes_back_in_time_goes_on(opened: Callable[..., Desk]) -> None:
    tensor, first = values(100_000), opened()

    def give(asked: Call) -> Reply:
        if asked.said["first_byte"] == 2 * CHUNK:
            first.close(0.0)
            knows_its_calls = threading.Event()
            port = int(first.address.rpartition(":")[2])
            second = opened(port, recognize=lambda _: assert_set(knows_its_calls))  # it is called at once
            donor(second, tensor)
            knows_its_calls.set()
        return chunk_reply(asked.said, tensor, "0")

    first.answer("w", give)
    assert torch.equal(pull_tensor(first.address, "w", {}, 60, CHUNK), tensor)


def test_a_donors_refusal_ends_the_transfer(desk: Desk) -> None:
    def give(asked: Call) -> Reply:
        raise RefusedError("this version is gone", "gone")

    desk.answer("w", give)
    with pytest.raises(RefusedError, match="this version is gone") as raised:
        pull_tensor(desk.address, "w", {}, 20)
    assert raised.value.kind == "gone"


def test_values_that_change_in_mid_transfer_are_noticed(desk: Desk) -> None:
    desk.answer("w", lambda asked: chunk_reply(asked.said, values(1000), str(asked.said["first_byte"] // 2000)))
    with pytest.raises(ProtocolError, match="has changed while it was pulled"):
        pull_tensor(desk.address, "w", {}, 20, 1000)


def test_a_tensor_that_is_not_the_one_needed(desk: Desk) -> None:
    donor(desk, values(1000))
    for like in (torch.empty(1000, dtype=torch.float64), torch.empty(10, 100)):
        with pytest.raises(ProtocolError, match="do both sites train the same model"):
            pull_tensor(desk.address, "w", {}, 20, like=like)


@pytest.mark.parametrize("said", [{}, {"first_byte": -1, "chunk_bytes": 4}, {"first_byte": 9, "chunk_bytes": 4}])
def test_parts_that_a_tensor_does_not_have(desk: Desk, said: dict[str, int]) -> None:
    desk.answer("w", lambda asked: chunk_reply(asked.said, torch.ones(2), "0"))
    with pytest.raises(RefusedError) as raised:
        call(desk.address, "w", said)
    assert raised.value.kind == "ProtocolError"


def test_the_caller_can_give_up(desk: Desk) -> None:
    asked_for = donor(desk, values(100_000))

    def look() -> None:
        if len(asked_for) > 1:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pull_tensor(desk.address, "w", {}, 20, CHUNK, look=look)
    assert asked_for == [0, CHUNK]
