"""What checkpoints are, and what becomes of damaged, moved and foreign ones: scenarios/checkpoints.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.launch import run_ranks
from tests.support.ranks import Ranks, alone, each_of, ranks_of, started

SUITE = "tests.strategy.scenarios.checkpoints"
ranks = ranks_of(SUITE)


@each_of(SUITE, but=("saved", "went on"))
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


def test_other_numbers_of_ranks_go_on(tmp_path: Path) -> None:
    with started(SUITE, 2, tmp_path) as two:
        two.run("saved")
    for n_ranks in (1, 3):
        with started(SUITE, n_ranks, tmp_path) as others:
            for output in others.run("went on"):
                assert f"was saved by 2 clients, and {n_ranks} continue" in output


def test_the_finished_model_survives_the_loss_of_the_first_rank(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed when all is merged, before the clients have compared their weights."""
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    killed, left = run_ranks(2, alone(SUITE, "killed"), expect_code=None)
    assert "HOLDS" not in killed
    assert "HOLDS the finished model is on the disk" in left.splitlines()
    assert re.search(r"PeerLostError: after the last of \d+ rounds: client 0 .* no need to train again", left), left
