"""The search for a learning rate: the trial with the lowest final loss decides."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

Record = Mapping[str, Any]
"""A run with ``failed``, ``learning_rate`` and ``held_out_loss``, a list of [steps, loss]."""


def final_loss(run: Record) -> float:
    """Held-out loss at the end."""
    return run["held_out_loss"][-1][1]


def best_rate(trials: Iterable[Record]) -> float:
    """The learning rate of the trial with the lowest final loss. Raises ValueError if none has finished."""
    found = [trial for trial in trials if not trial["failed"]]
    if not found:
        raise ValueError("no trial of a learning rate has finished")
    return min(found, key=final_loss)["learning_rate"]
