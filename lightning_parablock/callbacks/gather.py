"""What every rank knows, brought together on all of them; never called on the way out of an exception."""

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

    A strategy that has a ``gather_objects`` of its own, which notices lost peers, does it; otherwise it goes over the
    default process group, whose timeout is the limit. Without one the answer is ``[value]``.
    """
    if isinstance(strategy, Gathering):
        return strategy.gather_objects(value)
    return default_group.gather_objects(value)


def round_records(strategy: Any) -> list[RoundRecord]:
    """The finished rounds of this rank's clients, oldest first; empty for a strategy that has no rounds."""
    return list(getattr(strategy, "round_records", ()))


def folder_here(trainer: Trainer, folder: str | None) -> Path | None:
    """The folder in which this rank writes what concerns all clients; None where another rank does so. Collective.

    The first rank writes. Where sites have names each site does, on its own disk, in a folder of its name inside.

    Args:
        trainer: The trainer.
        folder: As the user named it; None is the trainer's log directory.
    """
    return place_here(trainer, Path(folder or trainer.log_dir or trainer.default_root_dir))


def place_here(trainer: Trainer, folder: Path) -> Path | None:
    """:func:`folder_here` for a folder that is known on every rank; not collective."""
    sites: tuple[str, ...] = getattr(trainer.strategy, "site_names", ())
    if sites:
        return folder / sites[trainer.global_rank]
    return folder if trainer.is_global_zero else None


class NewRecords:
    """Hands out each finished round once, however often it is asked."""

    def __init__(self) -> None:
        self._last_round = -1

    def take(self, strategy: Any) -> list[RoundRecord]:
        """The records that appeared since the last call, oldest first; of a round that of this rank's first client."""
        newest_first = reversed(getattr(strategy, "round_records", ()))
        first = first_of_each_round(takewhile(lambda record: record.round > self._last_round, newest_first))
        self._last_round = max(first, default=self._last_round)
        return [first[number] for number in sorted(first)]
