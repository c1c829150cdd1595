"""Ordinary checkpoints without sidecars, which one rank writes without waiting for any other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO, TorchCheckpointIO
from lightning.pytorch import Trainer

from lightning_parablock.checkpointing.sidecars import what_was_foreign, write_atomically
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.lightning_private.checkpoints import dump_weights
from lightning_parablock.settings.secure import NEW_FIT_ALONE
from lightning_parablock.system.command_line import command_to_resume
from lightning_parablock.system.plain_values import first_foreign, numpy_numbers, without_numpy_numbers

log = logging.getLogger(__name__)
_warned = set[tuple[str, str]]()


def save_plain(
    ranks: Collectives, files: CheckpointIO, checkpoint: dict[str, Any], filepath: Any, storage_options: Any
) -> None:
    """Write an ordinary checkpoint on the first rank."""
    if ranks.global_rank == 0:
        write_plain(files, checkpoint, filepath, storage_options)


def write_plain(files: CheckpointIO, checkpoint: dict[str, Any], filepath: Any, storage_options: Any) -> None:
    """Write an ordinary checkpoint on this rank, atomically where it is a file of Lightning's own kind."""
    checkpoint = without_numpy_numbers(checkpoint)
    if type(files) is not TorchCheckpointIO or is_remote(filepath):
        files.save_checkpoint(checkpoint, filepath, storage_options=storage_options)
        return
    write_atomically(
        Path(filepath), lambda path: files.save_checkpoint(checkpoint, path, storage_options=storage_options)
    )


def read_checkpoint(files: CheckpointIO, path: Any, weights_only: bool | None, *, advice: str = "") -> dict[str, Any]:
    """A checkpoint of Lightning.

    Args:
        files: How Lightning reads checkpoints.
        path: The file, or a URL.
        weights_only: False lets it hold any Python object.
        advice: Ends the message where it cannot be read.

    Raises:
        ConfigurationError: it cannot be read, or is no checkpoint.
    """
    try:
        with numpy_numbers():
            # Lightning would let a file at a URL run code, if the user has not said that it must not.
            checkpoint: Any = files.load_checkpoint(path, weights_only=weights_only is not False)
    except Exception as error:
        raise ConfigurationError(f"{path} cannot be read as a checkpoint: {what_was_foreign(error)}{advice}") from error
    if not isinstance(checkpoint, dict) or "state_dict" not in checkpoint:
        raise ConfigurationError(f"{path} is not a Lightning checkpoint: it has no 'state_dict'")
    return checkpoint


def warn_of_foreign(state: Mapping[str, Any]) -> None:
    """Name what a checkpoint holds beside tensors and plain values, each once per process."""
    found = first_foreign(state)
    if found is not None and found not in _warned:
        _warned.add(found)
        log.warning(
            "parablock: %s in the checkpoint is a %s: resuming needs weights_only=False; keep tensors and plain values "
            "there to avoid it",
            *found,
        )


def save_rescued(
    trainer: Trainer,
    file_name: str,
    round_index: int,
    *,
    completed: Callable[[dict[str, Any]], dict[str, Any]] | None,
    site: str | None = None,
    can_be_fresh: bool = True,
) -> None:
    """Save the committed model of a failing run in the trainer's folder, as a checkpoint of the weights alone.

    Args:
        trainer: The trainer.
        file_name: Name of the file.
        round_index: The round in which the run, or the site's part in it, ends.
        completed: Adds what a run needs that continues from the file; None where it begins with fresh clients.
        site: The only site that ends, where the others may continue; None where the whole run ends.
        can_be_fresh: Whether a run may continue from the weights alone.
    """
    path = Path(trainer.default_root_dir) / file_name
    ends, resume = "the run ends", "to continue from it"
    if site is not None:
        ends, resume = (
            f"site {site} ends",
            "the others may continue without it; should all sites be gone, start them with",
        )
    try:
        dumped = dump_weights(trainer)
        if completed is not None:
            dumped = completed(dumped)
        write_plain(TorchCheckpointIO(), dumped, path, None)
    except Exception as error:  # what failed the run must be shown, and not what came after it
        log.error("parablock: the committed model could not be saved to %s: %s", path, error)
    else:
        how = f"{resume}: {command_to_resume(str(path), fresh=completed is None)}"
        if completed is None and not can_be_fresh:
            how = NEW_FIT_ALONE
        log.warning("parablock: %s in round %d; the last committed model is in %s; %s", ends, round_index, path, how)


def is_remote(path: Any) -> bool:
    """Whether a path is a URL rather than a file of this machine."""
    return "://" in str(path)
