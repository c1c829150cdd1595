"""Values of every rank, gathered on all ranks; never called while an exception is being handled."""

from __future__ import annotations

from itertools import takewhile
from pathlib import Path
from typing import Any, TypeVar

from lightning.pytorch import Trainer

from lightning_parablock.federation.collectives import Gathering
from lightning_parablock.meeting import default_group
from lightning_parablock.records import RoundRecord, first_of_each_round

T = TypeVar("T")


def gather_objects(strategy: Any, value: T) -> list[T]:
    """The value of each rank, in rank order, on every rank; a collective, so all ranks call it.

    Uses the strategy's own ``gather_objects``, which notices lost peers, if it has one; otherwise the default process
    group, whose timeout is the limit. Without a process group the result is ``[value]``.
    """
    if isinstance(strategy, Gathering):
        return strategy.gather_objects(value)
    return default_group.gather_objects(value)


def round_records(strategy: Any) -> list[RoundRecord]:
    """Finished rounds of this rank's clients, oldest first; empty for a strategy that has no rounds."""
    return list(getattr(strategy, "round_records", ()))


def folder_here(trainer: Trainer, folder: str | None) -> Path | None:
    """Folder to which this rank writes files about all clients; None where another rank writes them. Collective.

    The first rank writes. Where sites have names, each site writes to its own disk, in a subfolder with its name.

    Args:
        trainer: The trainer.
        folder: Folder given by the user; None for the trainer's log directory.
    """
    return place_here(trainer, Path(folder or trainer.log_dir or trainer.default_root_dir))


def place_here(trainer: Trainer, folder: Path) -> Path | None:
    """Like :func:`folder_here`, for a folder that is known on every rank; not collective."""
    sites: tuple[str, ...] = getattr(trainer.strategy, "site_names", ())
    if sites:
        return folder / sites[trainer.global_rank]
    return folder if trainer.is_global_zero else None


class NewRecords:
    """Returns each finished round once, however often it is called."""

    def __init__(self) -> None:
        self._last_round = -1

    def take(self, strategy: Any) -> list[RoundRecord]:
        """One record per round finished since the last call, oldest first: that of this rank's first client."""
        newest_first = reversed(getattr(strategy, "round_records", ()))
        first = first_of_each_round(takewhile(lambda record: record.round > self._last_round, newest_first))
        self._last_round = max(first, default=self._last_round)
        return [first[number] for number in sorted(first)]
