"""Which method to take: the lowest loss for a memory, and training of the model itself against adapters."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Cell:
    """One rate and one time of the table.

    Attributes:
        link: Key of a row's ``links``, such as "20mbit".
        minutes: Key of what is ``reached`` on it, such as "10".
    """

    link: str
    minutes: str

    def of(self, row: Row) -> Row:
        """What a row has reached."""
        return row["links"][self.link]["reached"][self.minutes]

    def loss(self, row: Row) -> float:
        """The mean over the seeds of the loss that a row has reached."""
        return self.of(row)["mean_loss"]


def front(rows: Iterable[Row], cell: Cell) -> list[Row]:
    """The rows that no other one beats with as much memory or less, from the least memory to the lowest loss."""
    kept = list[Row]()
    for row in sorted(rows, key=lambda row: (row["peak_bytes"], cell.loss(row))):
        if not kept or cell.loss(row) < cell.loss(kept[-1]):
            kept.append(row)
    return kept


def best_of(rows: Iterable[Row], trains: str, cell: Cell) -> Row | None:
    """The row with the lowest loss among those that train adapters, or the model; None without any."""
    return min((row for row in rows if row["trains"] == trains), key=cell.loss, default=None)


def overlap(first: Sequence[float], second: Sequence[float]) -> bool:
    """Whether the ranges of two rows' losses over their seeds meet, so that their order may be chance."""
    return min(first) <= max(second) and min(second) <= max(first)
