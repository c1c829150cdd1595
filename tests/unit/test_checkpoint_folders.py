"""In which folders a site writes its part of checkpoints, when the first site has said where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_parablock.checkpointing.folders import note_folders, refuse_foreign_folders
from lightning_parablock.errors import ConfigurationError

SITES = ("a", "b")


def trainer_at(root: Path | str, dirpath: Path | str | None = None, logger: Any = False) -> Trainer:
    """Of site b, whose user names the folder of checkpoints, or none."""
    callbacks: Any = [ModelCheckpoint(dirpath, save_last=True)]
    trainer = Trainer(accelerator="cpu", devices=1, logger=logger, callbacks=callbacks, default_root_dir=root)
    note_folders(trainer)
    return trainer


def told(trainer: Trainer, folder: Path | str) -> None:
    """What the first site says, and how this one takes it."""
    callback: Any = trainer.checkpoint_callback
    callback.dirpath = str(folder)
    note_folders(trainer)  # as a fit after a validation does: the first one's folder does not become this site's own
    refuse_foreign_folders(trainer, SITES, 1)


@pytest.mark.parametrize("folder", ["/home/b/.config", "../../..", "runs/1/c/checkpoints", "runs/1/a/../../../a"])
def test_a_folder_elsewhere_is_refused(folder: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    trainer = trainer_at("runs/1/b")
    for _ in range(2):
        with pytest.raises(
            ConfigurationError, match=r"site a keeps checkpoints in .*; give every site the same dirpath"
        ):
            told(trainer, folder)


@pytest.mark.parametrize("folder", ["runs/1/a/checkpoints", "runs/2/a/checkpoints", "runs/1/b/checkpoints"])
@pytest.mark.parametrize("is_absolute", [True, False])
def test_the_first_sites_part_of_the_folder_of_runs_is_taken(
    folder: str, is_absolute: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites start in different seconds, and so in folders of other names."""
    monkeypatch.chdir(tmp_path)
    top = tmp_path if is_absolute else Path()
    told(trainer_at(top / "runs/1/b"), top / folder)


def test_what_the_user_names_here_is_taken(tmp_path: Path) -> None:
    told(trainer_at(tmp_path), tmp_path / "lightning_logs" / "version_3" / "checkpoints")
    told(trainer_at(tmp_path / "b", tmp_path / "kept"), tmp_path / "kept")
    told(
        trainer_at(tmp_path / "b", logger=CSVLogger(tmp_path / "logs", "mine")),
        tmp_path / "logs" / "mine" / "version_7",
    )
    told(trainer_at(tmp_path / "b"), "s3://bucket/kept")  # where the first site alone writes
    with pytest.raises(ConfigurationError, match="site a keeps checkpoints in"):
        told(trainer_at(tmp_path / "b", tmp_path / "kept"), tmp_path / "other")


def test_ranks_that_one_command_has_started_share_the_first_ones_folder(tmp_path: Path) -> None:
    trainer = trainer_at(tmp_path / "b")
    callback: Any = trainer.checkpoint_callback
    callback.dirpath = "/anywhere"
    refuse_foreign_folders(trainer, (), 1)
    refuse_foreign_folders(trainer, SITES, 0)
