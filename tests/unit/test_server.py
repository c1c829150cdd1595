"""The server's arithmetic against the plain formulas, and its indifference to how a block is cut."""

from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.server import ServerShard, weighted_mean
from lightning_parablock.settings import ServerNesterov, ServerOptimizer, ServerSGD

EVERYTHING = slice(0, 40)
BIG = 2.0**24  # BIG + 1 is not a float32


def vectors(n: int, seed: int = 0, size: int = 40) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size, generator=generator) for _ in range(n)]


def run(optimizer: ServerOptimizer, cuts: list[int], n_rounds: int = 3) -> Tensor:
    """Commit some rounds of three clients, the block cut into parts at ``cuts``."""
    server = ServerShard(optimizer, [torch.zeros(3), vectors(1, seed=99)[0]])
    bounds = [0, *sorted(cuts), 40]
    for t in range(n_rounds):
        deltas = vectors(3, seed=t)
        for low, high in itertools.pairwise(bounds):
            server.commit(1, slice(low, high), [delta[low:high] for delta in deltas], [1, 2, 3])
    assert torch.equal(server.values[0], torch.zeros(3)), "a block that was not committed has changed"
    return server.values[1]


def test_the_mean_of_one_is_itself() -> None:
    (delta,) = vectors(1)
    mean = weighted_mean([delta], [1])
    assert torch.equal(mean, delta)
    assert mean.data_ptr() != delta.data_ptr()


@pytest.mark.parametrize("weights", [(1, 1, 1), (5, 1, 2)])
def test_the_mean_is_the_weighted_sum_over_the_sum_of_weights(weights: tuple[int, ...]) -> None:
    deltas = vectors(3)
    expected = sum(w * d.double() for w, d in zip(weights, deltas, strict=True)) / sum(weights)
    assert torch.allclose(weighted_mean(deltas, weights).double(), expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("numbers", "expected"),
    [
        ((BIG, 1.0, -BIG), 0.0),  # added from the right it would be 1/3
        ((BIG, -BIG, 1.0), 1 / 3),
        ((5.0, 0.0, 0.0), 5 / 3),  # 5 * (1/3) is another number
        ((BIG, *[1.0] * 15), BIG / 16),  # pairwise or in lanes it would be more
    ],
)
def test_the_sum_goes_in_the_given_order_and_is_divided_once(numbers: tuple[float, ...], expected: float) -> None:
    mean = weighted_mean([torch.tensor([number]) for number in numbers], [1] * len(numbers))
    assert torch.equal(mean, torch.tensor([expected]))


def test_a_missing_weight_is_an_error() -> None:
    with pytest.raises(ValueError):
        weighted_mean(vectors(3), [1, 1])


def test_sgd_adds_the_mean_times_its_rate() -> None:
    start, deltas = vectors(1, seed=7)[0], vectors(2)
    for lr in (1.0, 0.3):
        server = ServerShard(ServerSGD(lr=lr), [start.clone()])
        returned = server.commit(0, EVERYTHING, deltas, [1, 1])
        assert torch.equal(returned, start + lr * ((deltas[0] + deltas[1]) / 2))
        assert torch.equal(server.values[0], returned)


def test_nesterov_follows_its_formula_over_rounds() -> None:
    w, v = vectors(1, seed=7)[0], torch.zeros(40)
    server = ServerShard(ServerNesterov(lr=0.7, momentum=0.9), [w.clone()])
    for t in range(4):
        deltas = vectors(2, seed=t)
        g = (deltas[0] + deltas[1]) / 2
        v = 0.9 * v + g
        w = w + 0.7 * (g + 0.9 * v)
        assert torch.equal(server.commit(0, EVERYTHING, deltas, [1, 1]), w)


def test_each_block_has_a_velocity_of_its_own() -> None:
    optimizer, (delta,) = ServerNesterov(), vectors(1)
    both = ServerShard(optimizer, [torch.zeros(40), torch.zeros(40)])
    both.commit(0, EVERYTHING, [delta], [1])
    both.commit(0, EVERYTHING, [delta], [1])
    both.commit(1, EVERYTHING, [delta], [1])
    alone = ServerShard(optimizer, [torch.zeros(40)])
    alone.commit(0, EVERYTHING, [delta], [1])
    assert torch.equal(both.values[1], alone.values[0])
    assert not torch.equal(both.values[0], alone.values[0])


@settings(max_examples=60, derandomize=True, deadline=None, database=None)
@given(st.lists(st.integers(0, 40), max_size=6), st.sampled_from([ServerSGD(lr=0.3), ServerNesterov()]))
def test_any_cut_of_a_block_gives_the_same_bits(cuts: list[int], optimizer: ServerOptimizer) -> None:
    assert torch.equal(run(optimizer, cuts), run(optimizer, []))


def test_the_deltas_are_not_changed() -> None:
    deltas = vectors(3)
    kept = [delta.clone() for delta in deltas]
    ServerShard(ServerNesterov(), [torch.zeros(40)]).commit(0, EVERYTHING, deltas, [1, 1, 1])
    assert all(torch.equal(one, other) for one, other in zip(deltas, kept, strict=True))
