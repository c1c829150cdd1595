"""Block orders are pure functions of (seed, round), and each keeps its promise."""

from __future__ import annotations

import itertools
from typing import get_args

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.seeds import derive_seed
from lightning_parablock.settings import BlockOrder

N_BLOCKS = st.integers(1, 12)
SEEDS = st.integers(0, 2**63 - 1)
EXAMPLES = settings(max_examples=100, derandomize=True, deadline=None, database=None)


def rounds(order: BlockOrder, n_blocks: int, n_rounds: int, seed: int = 0) -> list[int]:
    return [block_of_round(order, n_blocks, t, seed) for t in range(n_rounds)]


def test_sequential_and_reverse() -> None:
    assert rounds("sequential", 3, 7) == [0, 1, 2, 0, 1, 2, 0]
    assert rounds("reverse", 3, 7) == [2, 1, 0, 2, 1, 0, 2]


@EXAMPLES
@given(N_BLOCKS, SEEDS)
def test_shuffle_visits_every_block_once_a_pass_and_repeats_none_across_the_seam(n_blocks: int, seed: int) -> None:
    order = rounds("shuffle", n_blocks, 6 * n_blocks, seed)
    for start in range(0, len(order), n_blocks):
        assert sorted(order[start : start + n_blocks]) == list(range(n_blocks))
    if n_blocks > 1:
        assert all(one != other for one, other in itertools.pairwise(order))


def test_shuffle_draws_a_fresh_permutation_each_pass() -> None:
    order = rounds("shuffle", 6, 60, seed=1)
    assert len({tuple(order[start : start + 6]) for start in range(0, 60, 6)}) >= 9


@EXAMPLES
@given(st.integers(1, 6), SEEDS)
def test_random_covers_every_block_and_stays_in_range(n_blocks: int, seed: int) -> None:
    drawn = rounds("random", n_blocks, 40 * n_blocks, seed)
    assert set(drawn) == set(range(n_blocks))


def test_random_may_repeat_at_once() -> None:
    drawn = rounds("random", 4, 200)
    repeats = sum(one == other for one, other in itertools.pairwise(drawn))
    assert 25 <= repeats <= 75  # a quarter of 199


@pytest.mark.parametrize("order", ["shuffle", "random"])
def test_the_seed_decides(order: BlockOrder) -> None:
    assert rounds(order, 8, 32, seed=1) == rounds(order, 8, 32, seed=1)
    assert rounds(order, 8, 32, seed=1) != rounds(order, 8, 32, seed=2)


@pytest.mark.parametrize("order", get_args(BlockOrder))
def test_a_round_does_not_depend_on_what_was_asked_before(order: BlockOrder) -> None:
    forward = rounds(order, 5, 40, seed=3)
    backward = [block_of_round(order, 5, t, 3) for t in reversed(range(40))]
    assert backward[::-1] == forward


def test_two_blocks_alternate_because_nothing_else_avoids_a_repeat() -> None:
    order = rounds("shuffle", 2, 20, seed=4)
    assert order == [order[0], order[1]] * 10


def test_derived_seeds_are_the_same_on_every_machine_and_differ_by_purpose() -> None:
    assert derive_seed(7, "client", 3) == 8676057967001116555
    seeds = {derive_seed(s, label, i) for s in range(10) for label in ("client", "shards") for i in range(10)}
    assert len(seeds) == 200
    assert all(0 <= seed < 2**63 for seed in seeds)
