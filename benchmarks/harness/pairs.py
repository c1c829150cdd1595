"""Alternating pairs of runs at delay 0 and delay K; which of the two comes first alternates, too."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.harness.run_figures import Run, figures, seconds_spent

Pair = dict[str, Run]
"""One run per method, ``blocking`` and ``parablock``."""


def measure_pairs(
    run: Callable[[int], Run], local_steps: int, n: int, *, after: Callable[[Pair], None] = lambda _: None
) -> dict[str, Any]:
    """Make ``n`` pairs; returns them, the medians of their figures, and the median seconds each method spent on what.

    Args:
        run: Makes one run with the given ``delay_steps``.
        local_steps: Local steps per round (K).
        n: Number of pairs.
        after: Called with each pair once it is complete.
    """
    pairs: list[Pair] = []
    for index in range(n):
        pairs.append(_pair(run, local_steps, swapped=index % 2 == 1))
        after(pairs[-1])
    return {
        "medians": _medians([figures(pair["blocking"], pair["parablock"]) for pair in pairs]),
        "seconds_spent": {name: _medians([seconds_spent(pair[name]) for pair in pairs]) for name in pairs[0]},
        "pairs": pairs,
    }


def _pair(run: Callable[[int], Run], local_steps: int, *, swapped: bool) -> Pair:
    delays = {"blocking": 0, "parablock": local_steps}
    order = list(reversed(delays)) if swapped else list(delays)
    runs = {name: run(delays[name]) for name in order}
    return {name: runs[name] for name in delays}


def _medians(rows: list[dict[str, float]]) -> dict[str, float]:
    return {name: median(row[name] for row in rows) for name in rows[0]}
