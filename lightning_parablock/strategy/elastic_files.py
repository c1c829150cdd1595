"""The files of each site of an elastic run: no site can read another's, and several may work in one folder."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.checkpointing.plain import is_remote
from lightning_parablock.lightning_private.checkpoints import searching_in

_HOOKS = tuple(name for name in vars(Callback) if name.startswith("on_") or name in ("setup", "teardown"))


def keep_checkpoints_apart(
    trainer: Trainer, site: str, alone: Callable[[], AbstractContextManager[None]]
) -> Callable[[], None]:
    """Let callbacks that save checkpoints decide and write for this site alone.

    ModelCheckpoint asks the other ranks for the folder, for its decision, and whether a file exists. A site that joins
    has files and a history of its own, so the answers would differ, and so would the collectives.

    Args:
        trainer: The trainer whose callbacks these are.
        site: Name of this site: its checkpoints are in a folder of that name.
        alone: While it is entered, collectives are this site's own.

    Returns:
        What undoes it: a callback may be used with another trainer.
    """
    callbacks: list[Any] = list(trainer.checkpoint_callbacks)
    for callback in callbacks:
        for name in _HOOKS:
            vars(callback)[name] = _on_its_own(callback, name, alone)
        if isinstance(callback, ModelCheckpoint):
            vars(callback)["setup"] = _in_own_folder(callback, site, vars(callback)["setup"])

    def undo() -> None:
        for callback in callbacks:
            for name in _HOOKS:
                vars(callback).pop(name, None)

    return undo


def searching_own(trainer: Trainer, site: str) -> AbstractContextManager[None]:
    """While it is entered, ``ckpt_path="last"`` finds the checkpoints that this site has kept."""
    return searching_in(trainer, lambda folder: own_folder(folder, site))


def journal_folder(trainer: Trainer, site: str) -> Path | None:
    """The folder of ``membership.jsonl``: a site's part of the trainer's, or of the working directory for a URL.

    None with ``fast_dev_run``, which writes nothing.
    """
    values: Any = trainer
    if values.fast_dev_run:
        return None
    root = trainer.default_root_dir
    return Path(own_folder("." if is_remote(root) else root, site))


def notes_folder(trainer: Trainer, given: Path | None) -> Path | None:
    """Where a site notes the run that it takes part in, so that its next process finds the note.

    None with ``fast_dev_run``, which writes nothing.

    Args:
        trainer: In whose folder the note is by default, or in the working directory for a URL.
        given: Folder to use instead, where each process has another trainer's folder.
    """
    values: Any = trainer
    if values.fast_dev_run:
        return None
    return given or Path("." if is_remote(trainer.default_root_dir) else trainer.default_root_dir)


def own_folder(folder: str, site: str) -> str:
    """A site's part of a folder, or of a URL, in which several sites may work."""
    if site in Path(folder).parts:
        return folder
    return f"{folder.rstrip('/')}/{site}" if is_remote(folder) else str(Path(folder, site))


def _on_its_own(callback: Any, name: str, alone: Callable[[], AbstractContextManager[None]]) -> Callable[..., Any]:
    def hook(*args: Any, **kwargs: Any) -> Any:
        with alone():
            return getattr(type(callback), name)(callback, *args, **kwargs)

    return hook


def _in_own_folder(callback: ModelCheckpoint, site: str, set_up: Callable[..., Any]) -> Callable[..., Any]:
    def setup(*args: Any, **kwargs: Any) -> Any:
        if callback.dirpath is not None:
            callback.dirpath = own_folder(str(callback.dirpath), site)
        set_up(*args, **kwargs)
        if callback.dirpath is not None:
            callback.dirpath = own_folder(str(callback.dirpath), site)

    return setup
