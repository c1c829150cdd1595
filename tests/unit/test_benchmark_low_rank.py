"""Codecs beside an uncompressed run: what is sent and left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.codecs.beside import CodecBeside, MeanBeside
from benchmarks.codecs.low_rank import FactorsBeside
from lightning_parablock.server.aggregation import MeanAggregator, Received

SHAPES = [(30, 20), (7,)]
NUMEL = 30 * 20 + 7


def visit(means: MeanAggregator, round_index: int, deltas: list[Tensor]) -> Tensor:
    return means.aggregate((round_index, 0), received(deltas), slice(0, NUMEL)).mean.clone()


def received(deltas: list[Tensor]) -> dict[int, Received]:
    return {client: Received(1, 1.0, lambda delta=delta: delta) for client, delta in enumerate(deltas)}


def noise(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def test_codecs_beside_a_run_see_its_deltas_and_do_not_change_its_mean() -> None:
    codecs = {
        "none": CodecBeside("none", {}),
        "sparse": CodecBeside("sparse", {"group": 16}),
        "low_rank": FactorsBeside([SHAPES], 2),
    }
    beside, plain, alone = MeanBeside(codecs), MeanAggregator(), FactorsBeside([SHAPES], 2)
    total, arrived = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for round_index in range(4):
        deltas = [noise(2 * round_index), noise(2 * round_index + 1)]
        mean = visit(plain, round_index, deltas)
        assert torch.equal(visit(beside, round_index, deltas), mean)
        total += mean
        arrived += alone.mean((round_index, 0), received(deltas), slice(0, NUMEL))
        for means in (beside, alone):
            means.settle(round_index)
    rows = {(row["codec"], row["visit"]): row for row in beside.rows}
    assert len(rows) == 12
    assert all(rows["none", visit]["missing"] == 0 for visit in range(1, 5))
    assert rows["low_rank", 4]["missing"] == pytest.approx(float((total - arrived).norm() / total.norm()), rel=1e-4)
    for client, ratio in enumerate(rows["sparse", 4]["residual_over_delta"]):
        left_out = codecs["sparse"].left_out(client, 0)
        assert ratio == pytest.approx(float(left_out.norm() / noise(6 + client).norm()), rel=1e-4)


@pytest.mark.parametrize("codec", [CodecBeside("sparse", {}), FactorsBeside([SHAPES], 2)], ids=["sparse", "low_rank"])
def test_what_a_codec_beside_a_run_has_sent_and_left_out_are_all_of_the_deltas(
    codec: CodecBeside | FactorsBeside,
) -> None:
    total, sent = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for round_index in range(4):
        delta = noise(round_index)
        total += delta
        sent += codec.mean((round_index, 0), received([delta]), slice(0, NUMEL))
        if isinstance(codec, FactorsBeside):
            codec.settle(round_index)
    assert torch.allclose(sent + codec.left_out(0, 0), total, atol=1e-5)
