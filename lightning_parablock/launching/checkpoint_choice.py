"""Which file ``ckpt_path="last"``, ``"best"`` and ``"hpc"`` stand for: the same on all ranks, whatever their disks.

Lightning looks for it on each rank before the ranks meet. Where they have disks of their own most find nothing, or
raise an error, and would be in another part of the program than those that load.

At a path that another rank has sent, this one opens no checkpoint: it would read, and send to the others, a file of
this disk that another one has chosen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.federation.collectives import Collectives
from lightning_parablock.lightning_private.checkpoints import replace_path, wrap_search


class Choice(NamedTuple):
    """What one rank found.

    Attributes:
        path: The checkpoint, None for none.
        was_searched: Whether Lightning has searched here, so that this is not what the user named; with no path it has
            found none, and this rank continues from what another one has found.
        problem: Why Lightning found none, where that is an error.
        weights_only: What the user has said of the objects that the checkpoint may hold; None for nothing.
    """

    path: str | None
    was_searched: bool = False
    problem: str | None = None
    weights_only: bool | None = None


_noted: WeakKeyDictionary[Trainer, Choice] = WeakKeyDictionary()
"""What this rank's search has found for each trainer, until the ranks have agreed."""

_of_others: WeakKeyDictionary[Trainer, str] = WeakKeyDictionary()
"""The path on which the ranks have agreed, where this rank has neither named nor found it."""


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
        was_searched = found != ckpt_path or problem is not None or (ckpt_path is None and _searches_unasked(trainer))
        _noted[trainer] = Choice(_text(found), was_searched, problem, weights_only)
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
        own = _noted.pop(trainer, Choice(_text(checkpoint_path)))._replace(path=_text(checkpoint_path))
        choices = ranks.gather_objects(own)
        choices[ranks.global_rank] = own  # whatever has come back
        agreed = agreed_path(choices, ranks.global_rank, ranks.describe)
        _of_others.pop(trainer, None)
        if agreed is None or agreed == own.path:
            return checkpoint_path
        _of_others[trainer] = agreed
        return agreed

    replace_path(trainer, choose)


def is_own(trainer: Trainer, path: Any) -> bool:
    """Whether a checkpoint's path is this rank's, and not one that only another rank has named or found."""
    return _of_others.get(trainer) != _text(path)


def agreed_path(choices: Sequence[Choice], rank: int, describe: Callable[[int], str]) -> str | None:
    """The checkpoint for a rank: what its user named, or where it has searched, what the first that has one has.

    Raises:
        ConfigurationError: none was found though one was asked for, or only some ranks were given one.
    """
    found = next((choice.path for choice in choices if choice.path is not None), None)
    if found is None:
        problem = next((choice.problem for choice in choices if choice.problem is not None), None)
        if problem is not None:
            raise ConfigurationError(f"no checkpoint was found on any client: {problem}")
        return None
    if any(choice.path is None and not choice.was_searched for choice in choices):
        said = "; ".join(f"{describe(other)} has {choice.path or 'none'}" for other, choice in enumerate(choices))
        raise ConfigurationError(f"ckpt_path must be given to all clients or to none: {said}")
    return found if choices[rank].was_searched else choices[rank].path


def _searches_unasked(trainer: Trainer) -> bool:
    """Whether Lightning looks for a checkpoint though the user has given no ``ckpt_path``, and may find none."""
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    return SLURMEnvironment.detect() or any(isinstance(one, OnExceptionCheckpoint) for one in callbacks)


def _text(path: Any) -> str | None:
    return None if path is None else str(path)
