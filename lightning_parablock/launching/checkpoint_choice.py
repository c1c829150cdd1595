"""Which file ``ckpt_path="last"``, ``"best"`` and ``"hpc"`` stand for: the same on all ranks, whatever their disks.

Lightning looks for it on each rank before the ranks meet. Where they have disks of their own most find nothing, or
raise an error, and would be in another part of the program than those that load.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lightning.pytorch import Trainer

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.lightning_private.checkpoints import replace_path, wrap_search


class Choice(NamedTuple):
    """What one rank found.

    Attributes:
        path: The checkpoint, None for none.
        was_searched: Whether this is what Lightning found, and not what the user named.
        problem: Why Lightning found none, where that is an error.
        weights_only: What the user has said of the objects that the checkpoint may hold; None for nothing.
    """

    path: str | None
    was_searched: bool = False
    problem: str | None = None
    weights_only: bool | None = None


_noted: WeakKeyDictionary[Trainer, Choice] = WeakKeyDictionary()
"""What this rank's search has found for each trainer, until the ranks have agreed."""


def note_choice(
    trainer: Trainer,
    weights_only: bool | None = None,
    searching: Callable[[Trainer], AbstractContextManager[None]] | None = None,
) -> None:
    """Let a search that fails on this rank be no error yet; to be called before the trainer's work begins.

    Args:
        trainer: The trainer.
        weights_only: What the user has said of the objects that the checkpoint may hold; None for nothing.
        searching: Entered while Lightning searches.
    """

    def search(lightnings: Callable[[], Any], ckpt_path: Any) -> Any:
        found, problem = None, None
        try:
            with nullcontext() if searching is None else searching(trainer):
                found = lightnings()
        except ValueError as error:
            problem = str(error)
        _noted[trainer] = Choice(_text(found), found != ckpt_path, problem, weights_only)
        return found

    wrap_search(trainer, search)


def noted_choice(trainer: Trainer) -> Choice:
    """What this rank would resume from by itself, as far as its search has come."""
    return _noted.get(trainer, Choice(None))


def agree_on_newest(trainer: Trainer, elect: Callable[[Choice], str | None]) -> None:
    """Let ``elect`` choose in place of :func:`agree_on_choice`.

    Args:
        trainer: The trainer.
        elect: Receives what this rank would load by itself; returns what it loads; collective.
    """

    def choose(checkpoint_path: Any) -> Any:
        own = _noted.pop(trainer, Choice(None))
        return elect(own._replace(path=_text(checkpoint_path)))

    replace_path(trainer, choose)


def path_alone(choice: Choice) -> str | None:
    """The checkpoint for a rank that does by itself what it does.

    Raises:
        ConfigurationError: its search has found none, where that is an error.
    """
    if choice.path is None and choice.problem is not None:
        raise ConfigurationError(f"no checkpoint was found: {choice.problem}")
    return choice.path


def agree_on_choice(trainer: Trainer, ranks: Collectives) -> None:
    """Let all ranks load the same checkpoint, or none, once they have met."""

    def choose(checkpoint_path: Any) -> Any:
        own = _noted.pop(trainer, Choice(_text(checkpoint_path)))
        choices = ranks.gather_objects(own._replace(path=_text(checkpoint_path)))
        agreed = agreed_path(choices, ranks.global_rank, ranks.describe)
        return checkpoint_path if agreed == _text(checkpoint_path) else agreed

    replace_path(trainer, choose)


def agreed_path(choices: Sequence[Choice], rank: int, describe: Callable[[int], str]) -> str | None:
    """The checkpoint for a rank: what the user named, or for all ranks what the first of them that found one has found.

    Raises:
        ConfigurationError: none was found though one was asked for, or only some ranks were given one.
    """
    paths = [choice.path for choice in choices]
    found = next((path for path in paths if path is not None), None)
    if found is None:
        problem = next((choice.problem for choice in choices if choice.problem is not None), None)
        if problem is not None:
            raise ConfigurationError(f"no checkpoint was found on any client: {problem}")
        return None
    if any(choice.was_searched for choice in choices):
        return found
    if None in paths:
        said = "; ".join(f"{describe(other)} has {path or 'none'}" for other, path in enumerate(paths))
        raise ConfigurationError(f"ckpt_path must be given to all clients or to none: {said}")
    return paths[rank]


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
