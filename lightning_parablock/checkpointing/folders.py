"""Where a site lets the first one put its checkpoints: Lightning asks the first rank for the folder of all.

Without a limit a first site could have the others make folders, and write their own state, anywhere on their disks.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.checkpointing.plain import is_remote
from lightning_parablock.errors import ConfigurationError

_own: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
"""The folder of each ModelCheckpoint before the first rank's took its place, or one that was taken; None for none."""


def note_folders(trainer: Trainer) -> None:
    """Keep in mind which folders the user names here; to be called before Lightning sets up the callbacks."""
    for callback in _model_checkpoints(trainer):
        _own.setdefault(callback, callback.dirpath)


def refuse_foreign_folders(trainer: Trainer, sites: Sequence[str], rank: int) -> None:
    """Refuse folders of checkpoints that are neither this site's nor the first one's part of the same folder of runs.

    Args:
        trainer: Whose callbacks have been set up.
        sites: The names of the sites by rank; none where one command has started all ranks.
        rank: This rank.

    Raises:
        ConfigurationError: names the folder, and those that this site would take.
    """
    if not sites or rank == 0:
        return
    own = [Path(os.path.abspath(folder)) for folder in _own_folders(trainer)]
    runs = list(_runs_of_first(Path(os.path.abspath(trainer.default_root_dir)), sites[rank]))
    for callback in _model_checkpoints(trainer):
        if callback.dirpath is None or is_remote(callback.dirpath):  # at a URL the first rank alone writes
            continue
        folder = Path(os.path.abspath(callback.dirpath))
        is_mine = any(folder.is_relative_to(mine) for mine in own)
        if not is_mine and not any(_is_part(folder, top, depth, sites[0]) for top, depth in runs):
            listed = ", ".join(dict.fromkeys(map(str, own)))
            raise ConfigurationError(
                f"site {sites[0]} keeps checkpoints in {callback.dirpath}, and this site writes its part to its own "
                f"folders alone ({listed}); give every site the same dirpath, or the same default_root_dir or run_dir"
            )
        _own[callback] = callback.dirpath


def _model_checkpoints(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.checkpoint_callbacks  # type: ignore[assignment]
    return [callback for callback in callbacks if isinstance(callback, ModelCheckpoint)]


def _own_folders(trainer: Trainer) -> Iterator[str]:
    """What the user names here: the trainer's folder, those of the callbacks, and that of the logger, by its name."""
    if not is_remote(trainer.default_root_dir):
        yield str(trainer.default_root_dir)
    yield from (str(_own[one]) for one in _model_checkpoints(trainer) if _own.get(one) is not None)
    loggers: list[Any] = trainer.loggers
    for logger in loggers[:1]:
        if logger.save_dir is not None and logger.name:
            yield str(Path(logger.save_dir, str(logger.name)))


def _runs_of_first(root: Path, site: str) -> Iterator[tuple[Path, int]]:
    """Folders of runs beside this site's own run, and how deep in them the folders of sites are.

    A site's run is ``RUN_DIR/<site>`` or ``runs/<date>-<time>/<site>``, where sites may start in different seconds.
    """
    if root.name == site:
        yield root.parent, 0
        yield root.parent.parent, 1


def _is_part(folder: Path, top: Path, depth: int, site: str) -> bool:
    """Whether a folder is in that of a site."""
    return folder.is_relative_to(top) and folder.relative_to(top).parts[depth : depth + 1] == (site,)
