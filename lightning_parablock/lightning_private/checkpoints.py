"""What Lightning writes into a checkpoint, and how it looks for the one to resume from."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from functools import partial
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.lightning_private.instances import replace_method


def dump_weights(trainer: Trainer) -> dict[str, Any]:
    """A checkpoint of the weights alone, as ``trainer.save_checkpoint(weights_only=True)`` would write it.

    ``save_checkpoint`` is collective. Without this, a run that fails could not save its model without its peers.
    """
    return trainer._checkpoint_connector.dump_checkpoint(weights_only=True)  # pyright: ignore[reportPrivateUsage]


def wrap_search(trainer: Trainer, search: Callable[[Callable[[], Any], Any], Any]) -> None:
    """Let ``search`` call Lightning's search for the checkpoint that ``ckpt_path`` names.

    Lightning searches on each rank before the ranks meet. Without this, a rank that finds none would raise an error
    while the others wait for it.

    Args:
        trainer: The trainer.
        search: Receives Lightning's search and the user's ``ckpt_path``; returns the path to use, or None.
    """
    connector = _connector(trainer)

    def parse_ckpt_path(state_fn: Any, ckpt_path: Any, **more: Any) -> Any:
        lightnings = partial(type(connector)._parse_ckpt_path, connector, state_fn, ckpt_path, **more)
        return search(lightnings, ckpt_path)

    replace_method(connector, "_parse_ckpt_path", parse_ckpt_path)


@contextmanager
def searching_in(trainer: Trainer, folder_of: Callable[[str], str]) -> Generator[None]:
    """Until the end of the block, let the search for ``ckpt_path="last"`` look elsewhere.

    Lightning searches before the set-up in which a callback is given the folder of its site. Without this, a site would
    look in the folder that all sites share, find nothing there, and begin anew.

    Args:
        trainer: The trainer.
        folder_of: Receives the folder in which a ModelCheckpoint would look; returns the one in which it does.
    """
    callbacks: list[Any] = [one for one in trainer.checkpoint_callbacks if isinstance(one, ModelCheckpoint)]
    before = [callback.dirpath for callback in callbacks]
    for callback in callbacks:
        folder = callback._ModelCheckpoint__resolve_ckpt_dir(trainer)  # pyright: ignore[reportPrivateUsage]
        callback.dirpath = folder_of(str(folder))
    try:
        yield
    finally:
        for callback, folder in zip(callbacks, before, strict=True):
            callback.dirpath = folder


def replace_path(trainer: Trainer, choose: Callable[[Any], Any]) -> None:
    """Let ``choose`` replace the path from which Lightning is about to resume.

    This is the first moment at which the ranks have met and nothing is loaded yet. Without it, ranks with disks of
    their own would load different checkpoints.

    Args:
        trainer: The trainer.
        choose: Receives the path that Lightning found, or None; returns the one to load, or None; collective.
    """
    connector = _connector(trainer)

    def resume_start(checkpoint_path: Any = None, *args: Any, **kwargs: Any) -> None:
        type(connector).resume_start(connector, choose(checkpoint_path), *args, **kwargs)

    replace_method(connector, "resume_start", resume_start)


def _connector(trainer: Trainer) -> Any:
    return trainer._checkpoint_connector  # pyright: ignore[reportPrivateUsage]
