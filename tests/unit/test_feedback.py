"""Error feedback: nothing of a delta is lost, and a stop forgets nothing."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from lightning_parablock.codecs.feedback import Coder, Residual, Residuals
from lightning_parablock.settings import BF16, Compression, Int4, Int8, NoCompression, Sparse, TopK
from tests.oracle_codecs import arrives

SIZE = 5000
LOSSY = pytest.mark.parametrize(
    "compression", [BF16(), Int8(), Int4(), TopK(), Sparse()], ids=lambda c: type(c).__name__
)


def deltas(n: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [0.01 * torch.randn(SIZE, generator=generator) for _ in range(n)]


def sent(coder: Coder, delta: Tensor, residual: Residual | None, parts: list[slice]) -> Tensor:
    """What a server decodes from the messages of all parts."""
    received = torch.full((SIZE,), float("nan"))
    for part in parts:
        payload = torch.empty(coder.codec.payload_bytes(part.stop - part.start), dtype=torch.uint8)
        coder.encode_delta(delta, residual, part, payload)
        received[part] = coder.decode(payload, part.stop - part.start)
    return received


WHOLE = [slice(0, SIZE)]
CUT = [slice(0, 1024), slice(1024, 3072), slice(3072, SIZE)]


@LOSSY
def test_what_was_sent_and_what_is_left_are_the_sum_of_the_deltas(compression: Compression) -> None:
    coder, residuals = Coder(compression), Residuals()
    total_sent, total = torch.zeros(SIZE, dtype=torch.float64), torch.zeros(SIZE, dtype=torch.float64)
    for round_index, delta in enumerate(deltas(20)):
        residual = residuals.begin(round_index, 0, 3, SIZE)
        total_sent += sent(coder, delta, residual, CUT)
        total += delta
        residuals.settle(round_index)
    ((_, _, left),) = residuals.state()
    assert left.abs().max() > 0
    assert torch.allclose(total_sent + left, total, rtol=0, atol=1e-7)


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.9])
def test_what_was_left_out_decays_before_it_is_added(decay: float) -> None:
    coder, residuals, left = Coder(Sparse(decay=decay)), Residuals(), torch.zeros(SIZE)
    for round_index, delta in enumerate(deltas(5)):
        residual = residuals.begin(round_index, 0, 0, SIZE)
        received = sent(coder, delta, residual, CUT)
        wanted = delta + torch.tensor(decay) * left
        assert torch.equal(received, torch.cat([arrives("sparse", wanted[part]) for part in CUT]))
        left = wanted - received
        assert torch.equal(residual.after, left)


@LOSSY
def test_a_part_on_this_rank_takes_the_same_way_as_a_message(compression: Compression) -> None:
    one, other = Coder(compression), Coder(compression)
    before = deltas(2)[1]
    residual, same = (Residual(before, torch.empty(SIZE)) for _ in range(2))
    (delta,) = deltas(1)
    received = sent(one, delta, residual, CUT)
    own = torch.cat([other.as_received(delta, same, part).clone() for part in CUT])
    assert torch.equal(own, received)
    assert torch.equal(same.after, residual.after)


@LOSSY
def test_the_cut_into_parts_changes_no_bit(compression: Compression) -> None:
    coder = Coder(compression)
    (delta,) = deltas(1)
    whole, cut = (Residual(None, torch.empty(SIZE)) for _ in range(2))
    assert torch.equal(sent(coder, delta, whole, WHOLE), sent(coder, delta, cut, CUT))
    assert torch.equal(whole.after, cut.after)


def test_without_compression_the_bits_arrive_and_nothing_is_left() -> None:
    coder = Coder(NoCompression())
    (delta,) = deltas(1)
    assert torch.equal(sent(coder, delta, None, CUT), delta)
    assert torch.equal(coder.as_received(delta, None, slice(0, 1024)), delta[:1024])


def test_the_state_is_that_before_everything_in_flight() -> None:
    residuals = Residuals()
    after = []
    for round_index, block in enumerate([0, 1, 0]):
        residual = residuals.begin(round_index, 5, block, 4)
        residual.after.fill_(round_index + 1.0)
        after.append(residual.after)
    assert residuals.state() == []
    residuals.settle(0)
    assert [(c, b, t.tolist()) for c, b, t in residuals.state()] == [(5, 0, [1.0] * 4)]
    residuals.settle(1)
    residuals.settle(2)
    assert {(c, b, t[0].item()) for c, b, t in residuals.state()} == {(5, 0, 3.0), (5, 1, 2.0)}
    again = Residuals()
    again.load_state(residuals.state())
    before = again.begin(3, 5, 0, 4).before
    assert before is not None and torch.equal(before, after[2])
    assert again.begin(3, 6, 0, 4).before is None, "residuals belong to one client"


def test_the_residual_lies_on_the_host() -> None:
    assert Residuals().begin(0, 0, 0, 10).after.device.type == "cpu"
