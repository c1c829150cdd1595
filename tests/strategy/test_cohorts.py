"""More clients than ranks under Lightning: each trains in its turn, and the weights are the oracle's, bit for bit."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.strategy.worker_cohorts import CHOICES
from tests.support.launch import run_ranks

WORKER = ("-m", "tests.strategy.worker_cohorts")


@pytest.mark.parametrize("n_ranks", [1, 2, 3])
def test_turns_equal_the_oracle_on_any_number_of_ranks(n_ranks: int) -> None:
    for output in run_ranks(n_ranks, [*WORKER, "choices"]):
        equal = {line.split(" delay")[0] for line in output.splitlines() if line.startswith("EQUAL")}
        assert equal == {f"EQUAL {case}" for case in CHOICES}


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_turns_go_on_from_any_checkpoint_with_the_same_bits(
    n_ranks: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COHORT_SCRATCH", str(tmp_path))
    for output in run_ranks(n_ranks, [*WORKER, "resume"]):
        assert "RESUMED" in output.splitlines()


def test_sites_of_different_speed_and_precision_end_with_the_same_weights() -> None:
    for output in run_ranks(2, [*WORKER, "sites"]):
        assert "SITES" in output.splitlines()


def test_a_thousand_clients_on_two_ranks_equal_the_oracle_in_flat_memory() -> None:
    turns = 0
    for output in run_ranks(2, [*WORKER, "thousand"]):
        (line,) = [line for line in output.splitlines() if line.startswith("EQUAL")]
        assert "1000 clients" in line
        turns += int(line.split()[-3])
        assert "FLAT" in output
    assert turns == 28 * 20
