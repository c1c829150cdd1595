"""The simulated low-rank codec of bench_codecs, and codecs beside an uncompressed run: what is sent and left out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from benchmarks.codecs.beside import CodecBeside, FactorsBeside, MeanBeside
from benchmarks.codecs.low_rank import TILE_SCALARS, Basis, FactorMean, LowRank, expand, orthonormal
from lightning_parablock.server.aggregation import MeanAggregator, Received

SHAPES = [torch.Size((30, 20)), torch.Size((7,))]
NUMEL = 30 * 20 + 7


def means_of(how: LowRank) -> FactorMean:
    return FactorMean([SHAPES], how, seed=3)


def visit(means: MeanAggregator, round_index: int, deltas: list[Tensor], *, weights: list[int] | None = None) -> Tensor:
    weights = weights or [1] * len(deltas)
    received = {
        client: Received(weight, 1.0, lambda delta=delta: delta)
        for client, (delta, weight) in enumerate(zip(deltas, weights, strict=True))
    }
    return means.aggregate((round_index, 0), received, slice(0, NUMEL)).mean.clone()


def noise(seed: int) -> Tensor:
    return torch.randn(NUMEL, generator=torch.Generator().manual_seed(seed))


def of_rank(rank: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    left, right = torch.randn(30, rank, generator=generator), torch.randn(rank, 20, generator=generator)
    return torch.cat([(left @ right).view(-1), torch.ones(7)])


@pytest.mark.parametrize("of_transpose", [False, True])
def test_expanding_adds_one_product_after_the_other(of_transpose: bool) -> None:
    rows, columns = TILE_SCALARS // 16 + 3, 40
    generator = torch.Generator().manual_seed(0)
    basis = Basis(torch.randn(rows if of_transpose else columns, 3, generator=generator), of_transpose)
    factor = torch.randn(columns if of_transpose else rows, 3, generator=generator)
    into = torch.full((rows, columns), torch.nan)
    expand(factor, basis.vectors, basis.side(into))
    products = factor[:, None, :] * basis.vectors[None, :, :]
    assert torch.equal(basis.side(into), (products[..., 0] + products[..., 1]) + products[..., 2])


def test_what_was_sent_and_what_is_left_out_are_all_of_the_deltas() -> None:
    means, total, sent = means_of(LowRank(rank=2)), torch.zeros(NUMEL), torch.zeros(NUMEL)
    for round_index in range(5):
        delta = noise(round_index)
        total += delta
        sent += visit(means, round_index, [delta])
        means.settle(round_index)
    assert torch.allclose(sent + means.left_out(0, 0), total, atol=1e-5)


def test_deltas_of_the_rank_arrive_whole_from_the_second_visit_on() -> None:
    means, delta = means_of(LowRank(rank=2)), of_rank(2, seed=0)
    first = visit(means, 0, [delta])
    means.settle(0)
    second = visit(means, 1, [delta])
    assert not torch.allclose(first, delta, atol=1e-2)
    assert torch.allclose(first + second, 2 * delta, atol=1e-4)
    assert means.shares[1, 0] == pytest.approx(1)


def test_both_factors_bring_deltas_of_the_rank_at_the_first_visit() -> None:
    delta = of_rank(2, seed=0)
    assert torch.allclose(visit(means_of(LowRank(rank=2, factors="both")), 0, [delta]), delta, atol=1e-4)


def test_a_visit_sends_one_factor_in_turn_and_vectors_whole() -> None:
    means = means_of(LowRank(rank=2))
    for round_index in range(3):
        mean = visit(means, round_index, [noise(round_index)])
        assert torch.equal(mean[600:], noise(round_index)[600:])
        means.settle(round_index)
    assert means.scalars == {0: 2 * 30 + 7, 1: 2 * 20 + 7, 2: 2 * 30 + 7}


def test_a_basis_counts_from_the_merge_on() -> None:
    means = means_of(LowRank(rank=2, decay=0.0))
    before = visit(means, 0, [noise(0)])
    assert torch.equal(visit(means, 1, [noise(0)]), before)
    means.settle(0)
    assert not torch.equal(visit(means, 2, [noise(0)]), before)


def test_the_mean_is_weighted_and_clients_without_weight_keep_what_they_left_out() -> None:
    means = means_of(LowRank(rank=2))
    visit(means, 0, [noise(0), noise(1)])
    kept = means.left_out(1, 0).clone()
    alone = means_of(LowRank(rank=2))
    visit(alone, 0, [noise(0)])
    assert torch.equal(visit(means, 1, [noise(2), noise(3)], weights=[2, 0]), visit(alone, 1, [noise(2)]))
    assert torch.equal(means.left_out(1, 0), kept)


def test_bases_are_orthonormal() -> None:
    columns = orthonormal(torch.randn(50, 4, generator=torch.Generator().manual_seed(0)))
    assert torch.allclose(columns.T @ columns, torch.eye(4), atol=1e-6)


def test_codecs_beside_a_run_see_its_deltas_and_do_not_change_its_mean() -> None:
    codecs = {
        "none": CodecBeside("none", {}),
        "sparse": CodecBeside("sparse", {"group": 16}),
        "low rank": FactorsBeside([SHAPES], LowRank(rank=2), seed=3),
    }
    beside, plain, alone = MeanBeside(codecs), MeanAggregator(), means_of(LowRank(rank=2))
    total, arrived = torch.zeros(NUMEL), torch.zeros(NUMEL)
    for round_index in range(4):
        deltas = [noise(2 * round_index), noise(2 * round_index + 1)]
        mean = visit(plain, round_index, deltas)
        assert torch.equal(visit(beside, round_index, deltas), mean)
        total += mean
        arrived += visit(alone, round_index, deltas)
        for means in (beside, alone):
            means.settle(round_index)
    rows = {(row["codec"], row["visit"]): row for row in beside.rows}
    assert len(rows) == 12
    assert all(rows["none", visit]["missing"] == 0 for visit in range(1, 5))
    assert rows["low rank", 4]["missing"] == pytest.approx(float((total - arrived).norm() / total.norm()), rel=1e-4)
    for client, ratio in enumerate(rows["sparse", 4]["residual_over_delta"]):
        left_out = codecs["sparse"].left_out(client, 0)
        assert ratio == pytest.approx(float(left_out.norm() / noise(6 + client).norm()), rel=1e-4)


def test_what_a_codec_beside_a_run_has_sent_and_left_out_are_all_of_the_deltas() -> None:
    codec, total, sent = CodecBeside("sparse", {}), torch.zeros(NUMEL), torch.zeros(NUMEL)
    for round_index in range(4):
        delta = noise(round_index)
        total += delta
        sent += codec.mean((round_index, 0), {0: Received(1, 1.0, lambda delta=delta: delta)}, slice(0, NUMEL))
    assert torch.allclose(sent + codec.left_out(0, 0), total, atol=1e-5)
