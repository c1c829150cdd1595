"""The progress bar's words: one numbering of rounds, sums that say so, and the site."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_parablock.callbacks.progress import RoundProgressBar
from tests.unit.test_cli_report import record


def trainer_with(sites: tuple[str, ...] = (), rank: int = 0, **facts: Any) -> Any:
    strategy = SimpleNamespace(
        site_names=sites, round_steps=4, settings=SimpleNamespace(max_rounds=None), round_records=[]
    )
    return SimpleNamespace(
        strategy=strategy,
        estimated_stepping_batches=120,
        callback_metrics={"train_loss": torch.tensor(1.08e13)},
        is_global_zero=rank == 0,
        global_rank=rank,
        **facts,
    )


def printed(trainer: Any, n_rounds: int, capsys: pytest.CaptureFixture[str]) -> list[str]:
    bar, module = RoundProgressBar(lines=True), SimpleNamespace()
    bar.setup(trainer, module, "fit")  # type: ignore[arg-type]
    for t in range(n_rounds):
        trainer.strategy.round_records.append(record(t, 0, exposed_s=0.5))
        bar._take_records(trainer)
    return [line.partition("]  ")[2] for line in capsys.readouterr().out.splitlines()]


def test_rounds_are_counted_from_0_and_waits_are_summed(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = printed(trainer_with(), 2, capsys)
    loss = "train_loss 1.08 x 10^13"
    assert first == f"round 0 (1 of 30 done)  block layers.0  exposed 0.5 s so far  exchanged 3.0 kB  {loss}"
    assert second == f"round 1 (2 of 30 done)  block layers.1  exposed 1 s so far  exchanged 6.0 kB  {loss}"


def test_other_ranks_are_silent_unless_they_are_sites(capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(trainer_with(rank=1), 1, capsys) == []
    (line,) = printed(trainer_with(("lyon", "oslo"), rank=1), 1, capsys)
    assert line.startswith("site oslo  round 0 (1 of 30 done)  ")
