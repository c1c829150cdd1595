"""The ranks of a run as a data module meets them: it works together with them, or alone without a run."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar

from lightning_parablock.callbacks.gather import gather_objects
from lightning_parablock.data.sharing import do_together
from lightning_parablock.meeting import default_group

T = TypeVar("T")


class Peers:
    """The ranks of a trainer's run.

    Args:
        trainer: The trainer; None where there is none, and this process works alone.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer

    @property
    def are_met(self) -> bool:
        """Whether there are several, and they can exchange objects."""
        if self._run is not None:
            return True  # also where others only come later
        # A dry run has a trainer of several processes, and is one of them.
        return self._trainer is not None and self._trainer.world_size > 1 and default_group.is_open()

    @property
    def is_newcomer(self) -> bool:
        """Whether this process comes to a run whose sites have agreed on their data already."""
        return self._run is not None and self._run.is_newcomer

    def numbers(self, n_clients: int, hosted: Sequence[int]) -> int:
        """How many client numbers there are: those of sites that come and go have gaps, and a new one's may be high."""
        return max(n_clients, 1 + max(hosted)) if self.is_newcomer else n_clients

    @property
    def _run(self) -> Any:
        """The run whose sites come and go, if this is one."""
        return getattr(getattr(self._trainer, "strategy", None), "elastic", None)

    def together(self, work: Callable[[], T]) -> list[T]:
        """The result of the same work on every rank; an error on one rank is an error on all. Collective."""
        if not self.are_met:
            return [work()]
        gather = partial(gather_objects, self._trainer.strategy)
        return do_together(work, gather, self._trainer.global_rank, self.names())

    def names(self) -> list[str]:
        """A description of each rank."""
        describe = getattr(self._trainer.strategy, "describe", "rank {}".format)
        return [describe(rank) for rank in range(self._trainer.world_size)]
