"""The finished model, saved after the last exchange: the last checkpoint of a fit is older than that."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.checkpointing.plain import is_remote, write_plain
from lightning_parablock.errors import CheckpointError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.lightning_private.checkpoints import dump_weights

log = logging.getLogger(__name__)

FILE_NAME = "final.ckpt"


def is_wanted(trainer: Trainer) -> bool:
    """Whether the user wants files of a fit that ends well: not with ``enable_checkpointing=False``, for one."""
    return bool(_keeping(trainer)) and not trainer.fast_dev_run  # type: ignore[attr-defined]


def checkpoint_folders(trainer: Trainer) -> list[Path]:
    """The folders on mounted disks in which the callbacks of a fit keep checkpoints, the same on every rank."""
    if trainer.fast_dev_run:  # type: ignore[attr-defined]
        return []
    folders = [c.dirpath for c in _keeping(trainer) if isinstance(c, ModelCheckpoint) and c.dirpath is not None]
    return [Path(folder) for folder in folders if not is_remote(folder)]


def _keeping(trainer: Trainer) -> list[Any]:
    callbacks: list[Any] = trainer.checkpoint_callbacks  # type: ignore[assignment]
    return [c for c in callbacks if not isinstance(c, ModelCheckpoint) or c.save_top_k != 0 or bool(c.save_last)]


def final_path(trainer: Trainer) -> str:
    """Beside the checkpoints of the first ModelCheckpoint, else in the trainer's folder."""
    callbacks: list[Any] = trainer.checkpoint_callbacks  # type: ignore[assignment]
    folders = [c.dirpath for c in callbacks if isinstance(c, ModelCheckpoint) and c.dirpath is not None]
    folder = str(folders[0] if folders else trainer.default_root_dir)
    return f"{folder.rstrip('/')}/{FILE_NAME}" if is_remote(folder) else str(Path(folder, FILE_NAME))


def in_own_folder(path: str, root: str, own_root: str) -> str | None:
    """What is inside the first site's folder at another site, whose own folder it is inside of there.

    Args:
        path: At the first site.
        root: The first site's folder.
        own_root: This site's.

    Returns:
        The path at this site; None for one that is not inside the folder, or leads out of it.
    """
    if is_remote(path) or not Path(path).is_relative_to(root):
        return None
    inside = Path(path).relative_to(root)
    return None if ".." in inside.parts else str(Path(own_root, inside))


def save_final(ranks: Collectives, files: CheckpointIO, trainer: Trainer) -> None:
    """Save the model, as a checkpoint of the weights alone, on the disk of every rank; collective.

    Raises:
        CheckpointError: a rank could not write; the same error on every rank.
    """
    path, root = final_path(trainer), str(trainer.default_root_dir)
    model = dump_weights(trainer)  # on every rank, since a module's on_save_checkpoint may be collective
    stamp, problem = _try_to_write(ranks, files, model, path) if ranks.global_rank == 0 else (None, None)
    seen, problem_of_first, path_of_first, root_of_first = ranks.gather_objects((stamp, problem, path, root))[0]
    if ranks.site_names:
        path = in_own_folder(path_of_first, root_of_first, root) or path  # and nowhere that only the first one names
    if problem_of_first is None and ranks.global_rank != 0 and not is_remote(path) and _stamp_of(path) != seen:
        _, problem = _try_to_write(ranks, files, model, path)  # a disk of its own
    problems = [found for found in ranks.gather_objects(problem) if found is not None]
    if problems:
        raise CheckpointError(f"the finished model could not be saved: {'; '.join(problems)}")
    if ranks.global_rank == 0:
        log.info("parablock: the finished model is in %s", path)


def save_final_alone(ranks: Collectives, files: CheckpointIO, trainer: Trainer) -> None:
    """The same where another rank has failed after the last exchange; never waits, and raises nothing."""
    # Where the checkpoints are is the first site's folder, and that site may be the one that has failed.
    path = str(Path(trainer.default_root_dir, FILE_NAME)) if ranks.site_names else final_path(trainer)
    try:
        _, problem = _try_to_write(ranks, files, dump_weights(trainer), path)
    except Exception as error:  # the loss of the other rank must be shown, and not what came after it
        problem = error
    if problem is not None:
        log.error("parablock: the finished model could not be saved: %s", problem)
    else:
        log.warning("parablock: all rounds are over and merged; the finished model is in %s", path)


def _try_to_write(ranks: Collectives, files: CheckpointIO, model: dict[str, Any], path: str) -> tuple[Any, str | None]:
    """What identifies the file that was written, or why none was."""
    try:
        write_plain(files, model, path, None)
        return _stamp_of(path), None
    except Exception as error:  # the others wait
        return None, f"{ranks.describe(ranks.global_rank)}: {error}"


def _stamp_of(path: str) -> tuple[int, int] | None:
    """Of a file, by which ranks see whether they share a disk."""
    file = Path(path)
    if is_remote(path) or not file.is_file():
        return None
    stat = file.stat()
    return stat.st_size, stat.st_mtime_ns
