"""What the strategy adds to steps and rounds, and how much longer steps take beside an exchange: arithmetic."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean, median
from typing import Any

import numpy as np

from benchmarks.harness.bootstrap import Statistic, interval, median_ratio

Span = Sequence[float]
"""[start, end] in seconds."""


def is_beside(step: Span, exchanges: Sequence[Span]) -> bool | None:
    """Whether an exchange was in flight during all of a step (True), none of it (False) or a part of it (None)."""
    if any(start <= step[0] and step[1] <= end for start, end in exchanges):
        return True
    return None if any(start < step[1] and step[0] < end for start, end in exchanges) else False


def by_round(answer: dict[str, Any], local_steps: int) -> list[list[tuple[bool | None, float]]]:
    """For each round of one client's answer: (whether an exchange was in flight, seconds) of each step."""
    rounds, steps = answer["rounds"], answer["steps"]
    exchanges = list(zip(rounds["exchange_start_s"], rounds["exchange_end_s"], strict=True))
    told = [(is_beside(step, exchanges), step[1] - step[0]) for step in steps]
    return [told[first : first + local_steps] for first in range(0, len(told), local_steps)]


def paired_rounds(parallel: dict[str, Any], blocking: dict[str, Any], local_steps: int) -> list[list[float]]:
    """One row per round that has steps of both kinds, each value the mean seconds of its steps.

    ``[beside, without]`` for the run with exchanges in flight, then for the same steps of the run at delay 0, in which
    nothing is in flight: these show the effect of the position in the round alone. The first step of a round is
    skipped, since it creates the optimizer's state.
    """
    rows: list[list[float]] = []
    both = zip(by_round(parallel, local_steps), by_round(blocking, local_steps), strict=True)
    for told, still in both:
        beside = [k for k in range(1, len(told)) if told[k][0] is True]
        without = [k for k in range(1, len(told)) if told[k][0] is False]
        if beside and without:
            of = [(run, places) for run in (told, still) for places in (beside, without)]
            rows.append([fmean(run[k][1] for k in places) for run, places in of])
    return rows


def added(seconds: Mapping[str, Sequence[float]], local_steps: int, *, dropped: int) -> list[list[float]]:
    """One row per complete round: [seconds added to a step within the round, seconds added to the whole round].

    The first is the median over the steps without the first one, which creates the optimizer's state, and the last
    one, which ends with the switch to the next block.

    Args:
        seconds: Of each step, "parablock" and "plain".
        local_steps: Steps per round (K), at least 3.
        dropped: Steps that the training had made before.
    """
    both = zip(seconds["parablock"], seconds["plain"], strict=True)
    differences = [ours - plain for ours, plain in both][-dropped % local_steps :]
    whole = len(differences) - len(differences) % local_steps
    rounds = [differences[first : first + local_steps] for first in range(0, whole, local_steps)]
    return [[median(one[1:-1]), sum(one)] for one in rounds]


def costs(rows: Sequence[Sequence[float]], local_steps: int) -> dict[str, Any]:
    """Milliseconds that the strategy adds per step, and per round beyond its steps, with their 95 % intervals.

    Args:
        rows: See :func:`added`.
        local_steps: Steps per round (K).
    """

    def per_step(drawn: np.ndarray) -> np.ndarray:
        return 1e3 * np.median(drawn[..., 0], axis=-1)

    def per_round(drawn: np.ndarray) -> np.ndarray:
        return 1e3 * np.median(drawn[..., 1], axis=-1) - local_steps * per_step(drawn)

    return {"step": _with_interval(rows, per_step), "round": _with_interval(rows, per_round), "rounds": len(rows)}


def slowdown(rows: Sequence[Sequence[float]]) -> dict[str, Any]:
    """Ratios of steps with an exchange in flight to steps without, each with its 95 % interval over the rounds.

    ``in_flight``: as measured; ``same_places_at_delay_0``: at the same positions in rounds with nothing in flight;
    ``ratio``: the first divided by the second, which is the answer.
    """
    if not rows:
        raise ValueError("no round has steps of both kinds: the exchange is too short or too long for these rounds")
    return {
        "rounds": len(rows),
        "in_flight": _with_interval(rows, _of_parallel),
        "same_places_at_delay_0": _with_interval(rows, _of_blocking),
        "ratio": _with_interval(rows, _of_both),
    }


def _of_parallel(rows: np.ndarray) -> np.ndarray:
    return median_ratio(rows[..., :2])


def _of_blocking(rows: np.ndarray) -> np.ndarray:
    return median_ratio(rows[..., 2:])


def _of_both(rows: np.ndarray) -> np.ndarray:
    return _of_parallel(rows) / _of_blocking(rows)


def _with_interval(rows: Sequence[Sequence[float]], statistic: Statistic) -> dict[str, Any]:
    return {"median": float(statistic(np.asarray(rows)[None])[0]), "interval": interval(rows, statistic)}
