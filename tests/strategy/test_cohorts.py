"""More clients than ranks under Lightning: each trains in its turn, and the weights are the oracle's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.strategy.scenarios.cohorts import CHOICES
from tests.support.ranks import started

SUITE = "tests.strategy.scenarios.cohorts"


def output_of(n_ranks: int, scenario: str, folder: Path) -> list[str]:
    with started(SUITE, n_ranks, folder) as ranks:
        return ranks.run(scenario)


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_turns_equal_the_oracle_on_any_number_of_ranks(n_ranks: int, tmp_path: Path) -> None:
    for output in output_of(n_ranks, "choices", tmp_path):
        equal = {line.split(" delay")[0] for line in output.splitlines() if line.startswith("EQUAL")}
        assert equal == {f"EQUAL {case}" for case in CHOICES}


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_turns_of_as_many_steps_as_the_clients_find_equal_the_oracle(n_ranks: int, tmp_path: Path) -> None:
    for output in output_of(n_ranks, "found", tmp_path):
        steps = {int(line.split()[1]) for line in output.splitlines() if line.startswith("FOUND")}
        assert output.count("FOUND") == 4
        assert (steps == {4}) == (n_ranks == 1), steps


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_turns_go_on_from_any_checkpoint_with_the_same_bits(n_ranks: int, tmp_path: Path) -> None:
    for output in output_of(n_ranks, "resume", tmp_path):
        assert "RESUMED" in output.splitlines()


def test_sites_of_different_speed_and_precision_end_with_the_same_weights(tmp_path: Path) -> None:
    for output in output_of(2, "sites", tmp_path):
        assert "SITES" in output.splitlines()


def test_a_thousand_clients_on_two_ranks_equal_the_oracle_in_flat_memory(tmp_path: Path) -> None:
    turns = 0
    for output in output_of(2, "thousand", tmp_path):
        (line,) = [line for line in output.splitlines() if line.startswith("EQUAL")]
        assert "1000 clients" in line
        turns += int(line.split()[-3])
        assert "FLAT" in output
    assert turns == 28 * 20
