"""Minutes to a loss that every method reaches: the highest final loss of the data set's main methods and seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from benchmarks.frontier.methods import MAIN

Row = dict[str, Any]
Curve = Sequence[Sequence[float]]
"""[seconds, steps, loss] of each evaluated model, in order."""


def with_targets(rows: Sequence[Row]) -> list[Row]:
    """The table's rows with ``target_loss`` and, for each link, what is ``to_target``.

    That is ``minutes``, the mean over the seeds, and ``rounds`` of each; None where a seed stays above the target.
    """
    return [_with_target(row, _target(rows, row["data"])) for row in rows]


def _target(rows: Sequence[Row], data: str) -> float:
    of_data = [row for row in rows if row["data"] == data]
    main = [row for row in of_data if row["method"] in MAIN]
    return max(loss for row in main or of_data for loss in row["final_losses"])


def _with_target(row: Row, target: float) -> Row:
    links = {name: link | {"to_target": _to(target, link, row["local_steps"])} for name, link in row["links"].items()}
    return row | {"target_loss": target, "links": links}


def _to(target: float, link: Mapping[str, Any], local_steps: int) -> dict[str, Any] | None:
    firsts = [first_below(curve, target) for curve in link["curves"]]
    known = [first for first in firsts if first is not None]
    if len(known) < len(firsts):
        return None
    return {"minutes": fmean(s for s, _, _ in known) / 60, "rounds": [int(step) // local_steps for _, step, _ in known]}


def first_below(curve: Curve, target: float) -> Sequence[float] | None:
    """The first point from which on no evaluated loss is above the target; None if the last one is."""
    found = None
    for point in reversed(curve):
        if point[2] > target:
            break
        found = point
    return found
