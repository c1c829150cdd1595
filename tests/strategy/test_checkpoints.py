"""What checkpoints are, and what becomes of damaged, moved and foreign ones: the scenarios of worker_checkpoints.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.launch import run_ranks

SCENARIOS = [
    "ordinary",
    "torn",
    "missing",
    "foreign",
    "mixed",
    "different steps",
    "alone",
    "names",
    "own metric",
    "looked for",
    "damaged",
    "settings",
    "blocks",
    "strategy",
    "nowhere",
    "disks",
    "twice",
    "link",
    "full",
    "whole",
    "finished",
    "together",
    "folder",
    "last committed",
]
WORKER = ["-m", "tests.strategy.worker_checkpoints"]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("checkpoints")))
        return run_ranks(2, [*WORKER, "FILES"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()


def test_other_numbers_of_ranks_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    run_ranks(2, [*WORKER, "SAVE"])
    for n_ranks in (1, 3):
        for output in run_ranks(n_ranks, [*WORKER, "GO_ON"]):
            assert "HOLDS went on" in output.splitlines()
            assert f"was saved by 2 clients, and {n_ranks} go on" in output


def test_the_finished_model_survives_the_loss_of_the_first_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when all is merged, before the clients have compared their weights."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    killed, left = run_ranks(2, [*WORKER, "KILLED"], expect_code=None)
    assert "HOLDS" not in killed
    assert "HOLDS the finished model is on the disk" in left.splitlines()
    assert re.search(r"PeerLostError: after the last of \d+ rounds: client 0 .* no need to train again", left), left
