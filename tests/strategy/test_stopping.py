"""Runs that a signal stops or requeues, on real processes: the scenarios of worker_stopping.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.launch import run_ranks

SCENARIOS = [
    "SLURM's signal",
    "SLURM's signal, one task",
    "Ctrl-C",
    "Ctrl-C, one process",
    "Ctrl-C, the other process",
    "SIGTERM",
    "SIGTERM, one process",
    "at batch 1",
    "at batch 5",
    "at batch 11",
    "at batch 12",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("stopping")))
        return run_ranks(2, ["-m", "tests.strategy.worker_stopping"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()


def test_a_client_that_does_not_come_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    for output in run_ranks(2, ["-m", "tests.strategy.worker_stopping", "LATE"]):
        assert "HOLDS too late" in output.splitlines()
