"""Who trains in a round: a pure function of (seed, round), whichever ranks host the clients."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.cohorts import Cohorts, hosted_clients, turns_of_a_round
from lightning_parablock.federation.schedule import Schedule, draw_factors
from lightning_parablock.settings.clients import read_availability

EXAMPLES = settings(max_examples=100, derandomize=True, deadline=None, database=None)
N_CLIENTS, SEEDS, ROUNDS = st.integers(1, 60), st.integers(0, 2**63 - 1), st.integers(0, 10_000)


@EXAMPLES
@given(N_CLIENTS, st.integers(1, 60), SEEDS, ROUNDS, st.sampled_from(["uniform", "size", "rotation"]))
def test_a_cohort_has_its_size_and_no_client_twice(n: int, size: int, seed: int, t: int, sampling: Any) -> None:
    size = min(n, size)
    cohorts = Cohorts(n, size, sampling, seed, samples=tuple(range(1, n + 1)))
    cohort = cohorts.of_round(t)
    assert len(cohort) == size
    assert list(cohort) == sorted(set(cohort))
    assert set(cohort) <= set(range(n))
    assert cohort == cohorts.of_round(t)


def test_without_a_size_everybody_trains() -> None:
    assert Cohorts(4).of_round(7) == (0, 1, 2, 3)


def test_uniform_draws_everybody_alike_and_anew_each_round() -> None:
    cohorts = Cohorts(20, 5, seed=3)
    drawn = [cohorts.of_round(t) for t in range(4000)]
    counts = Counter(client for cohort in drawn for client in cohort)
    assert all(900 <= counts[client] <= 1100 for client in range(20))  # 1000 each, sd 27
    assert len(set(drawn)) > 3000
    assert drawn != [Cohorts(20, 5, seed=4).of_round(t) for t in range(4000)]


def test_by_size_draws_in_proportion_to_samples() -> None:
    cohorts = Cohorts(4, 1, "size", seed=1, samples=(1, 2, 3, 4))
    counts = Counter(client for t in range(5000) for client in cohorts.of_round(t))
    for client in range(4):
        assert abs(counts[client] - 500 * (client + 1)) < 150  # sd at most 35


def test_by_size_works_with_very_many_samples() -> None:
    cohorts = Cohorts(3, 1, "size", seed=1, samples=(10**12, 10**12, 1))
    counts = Counter(client for t in range(1000) for client in cohorts.of_round(t))
    assert min(counts[0], counts[1]) > 400
    assert counts[2] == 0


def test_a_rotation_takes_everybody_in_turn() -> None:
    rotation = Cohorts(5, 2, "rotation")
    assert [rotation.of_round(t) for t in range(5)] == [(0, 1), (2, 3), (0, 4), (1, 2), (3, 4)]


def test_a_trace_says_who_can_be_reached_and_begins_anew() -> None:
    cohorts = Cohorts(5, 2, seed=2, availability=((0, 3, 4), (1,)))
    assert set(cohorts.of_round(0)) < {0, 3, 4}
    assert cohorts.of_round(1) == (1,)
    assert {client for t in range(0, 60, 2) for client in cohorts.of_round(t)} == {0, 3, 4}


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("0 1\n\n2", "line 2 of"), ("0 1\n2 x", "line 2 of"), ("0 -1", "line 1 of")],
)
def test_a_trace_that_cannot_be_used_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "trace.txt").write_text(text)
    with pytest.raises(ConfigurationError, match=message):
        read_availability(str(tmp_path / "trace.txt"))


def test_a_trace_is_read_line_by_line(tmp_path: Path) -> None:
    (tmp_path / "trace.txt").write_text("3 0 0\n1\n")
    assert read_availability(str(tmp_path / "trace.txt")) == ((0, 3), (1,))
    with pytest.raises(ConfigurationError, match="cannot be read"):
        read_availability(str(tmp_path / "none.txt"))


@EXAMPLES
@given(st.integers(1, 12), st.integers(0, 50))
def test_ranks_host_disjoint_runs_of_clients_that_cover_all(n_ranks: int, more: int) -> None:
    hosted = hosted_clients(n_ranks + more, n_ranks)
    assert [client for clients in hosted for client in clients] == list(range(n_ranks + more))
    assert max(map(len, hosted)) - min(map(len, hosted)) <= 1


def test_a_round_has_turns_for_the_largest_part_of_a_cohort_that_one_rank_can_have() -> None:
    assert turns_of_a_round(None, [[0, 1, 2], [3, 4]]) == 3
    assert turns_of_a_round(2, [[0, 1, 2], [3, 4]]) == 2
    assert turns_of_a_round(20, [[0, 1, 2], [3, 4]]) == 3


def test_cyclic_clients_train_neighbouring_blocks_and_all_blocks_in_a_pass() -> None:
    made = Schedule("cyclic", 3, 0, Cohorts(4))
    assert made.work_of(0, {}) == {0: (0, 3), 1: (1,), 2: (2,)}
    assert made.work_of(1, {}) == {0: (2,), 1: (0, 3), 2: (1,)}
    for client in range(4):
        visited = [block for t in range(3) for block, clients in made.work_of(t, {}).items() if client in clients]
        assert sorted(visited) == [0, 1, 2]


def blocks_drawn(made: Schedule, norms: dict[int, float], n_rounds: int) -> Counter[int]:
    return Counter(block for t in range(made.n_blocks, n_rounds + made.n_blocks) for block in made.work_of(t, norms))


def test_importance_visits_every_block_once_and_then_draws_by_gradient_norm() -> None:
    made = Schedule("importance", 4, 5, Cohorts(2))
    assert sorted(block for t in range(4) for block in made.work_of(t, {0: 100.0})) == [0, 1, 2, 3]
    counts = blocks_drawn(made, {0: 1.0, 1: 2.0, 2: 3.0, 3: 4.0}, 5000)
    for block in range(4):
        assert abs(counts[block] - 500 * (block + 1)) < 150


@pytest.mark.parametrize("norms", [{}, {0: 0.0, 1: 0.0}, {0: float("nan"), 1: float("inf")}], ids=repr)
def test_importance_goes_on_where_norms_say_nothing(norms: dict[int, float]) -> None:
    counts = blocks_drawn(Schedule("importance", 2, 5, Cohorts(2)), norms, 1000)
    assert min(counts[0], counts[1]) > 400


def test_an_unknown_norm_counts_as_the_mean_of_the_known_ones() -> None:
    counts = blocks_drawn(Schedule("importance", 3, 5, Cohorts(1)), {0: 1.0, 1: 3.0}, 6000)
    assert [round(counts[block] / 1000) for block in range(3)] == [1, 3, 2]


@pytest.mark.parametrize("order", ["random", "importance"])
def test_some_blocks_can_be_visited_more_often(order: Any) -> None:
    factors = draw_factors((("embed|head", 3.0), ("head", 2.0)), ["embed", "layer0", "layer1", "head"])
    assert factors == (3.0, 1.0, 1.0, 6.0)
    counts = blocks_drawn(Schedule(order, 4, 5, Cohorts(1), factors), dict.fromkeys(range(4), 0.5), 11_000)
    assert [round(counts[block] / 1000) for block in range(4)] == [3, 1, 1, 6]


def test_a_pattern_that_is_in_no_name_is_refused() -> None:
    assert draw_factors((), ["layer0"]) is None
    with pytest.raises(ConfigurationError, match="visit_more: 'haed' is found in no block's name; the blocks are head"):
        draw_factors((("haed", 2.0),), ["head"])
