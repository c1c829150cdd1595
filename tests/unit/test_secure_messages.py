"""What a site is told of checkpoints from which secure sums do not continue: no option that they refuse."""

from __future__ import annotations

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.checkpointing import plain
from lightning_parablock.checkpointing.client_states import ClientStates
from lightning_parablock.checkpointing.sidecars import KEY, Entry
from lightning_parablock.errors import CheckpointError
from lightning_parablock.settings import SecureAggregation, Settings

WEIGHTS = {"w": torch.ones(2)}
SECURE = Settings(aggregation=SecureAggregation())
TO_DO = "load the weights into the module and start a new fit"


def refused(checkpoint: dict[str, Any], n_sites: int) -> str:
    ranks: Any = SimpleNamespace(world_size=n_sites, global_rank=0, site_names=tuple("abcd"[:n_sites]))
    with pytest.raises(CheckpointError) as error:
        ClientStates(ranks, SECURE, weights_only=True).overlay(checkpoint, "saved.ckpt")
    return str(error.value)


def test_another_number_of_sites() -> None:
    entry = Entry(
        save="1" * 32,
        sidecars_sha256=["0" * 64] * 3,
        settings=SECURE.fingerprint(),
        blocks=[("w", 2)],
        round=4,
        weights_sha256=hash_tensors(list(WEIGHTS.values())),
        sites=("a", "b", "c"),
    )
    said = refused({"state_dict": WEIGHTS, KEY: entry.as_dict()}, 4)
    assert said.startswith("3 sites saved ") and "saved.ckpt, and 4 continue; with aggregation='secure'" in said
    assert said.endswith(TO_DO)


def test_weights_alone() -> None:
    said = refused({"state_dict": WEIGHTS}, 3)
    assert said.startswith("saved.ckpt has no clients' state beside it") and said.endswith(TO_DO)
    assert "fresh" not in said


@pytest.mark.parametrize("can_be_fresh", [True, False])
def test_the_model_of_a_run_that_failed(
    tmp_path: Path, can_be_fresh: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(plain, "dump_weights", lambda trainer: {"state_dict": WEIGHTS})
    trainer: Any = SimpleNamespace(default_root_dir=tmp_path)
    plain.save_rescued(trainer, "rescued.ckpt", 7, completed=None, can_be_fresh=can_be_fresh)
    (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert said.startswith("parablock: the run ends in round 7; the last committed model is in ")
    assert ("missing_client_state" in said) == can_be_fresh and said.endswith(TO_DO) != can_be_fresh
    assert (tmp_path / "rescued.ckpt").is_file()
