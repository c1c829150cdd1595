"""How pictures of held-out losses draw one method: its colour, a thin line per seed, a thick line for the mean."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

COLOURS = {"parablock": "tab:blue", "fedbcd": "tab:orange", "fedavg": "tab:green"}
"""Method -> matplotlib colour, the same in every picture."""


def draw_curves(axis: Any, curves: list[list[list[float]]], colour: str, label: str) -> None:
    """One thin line per curve of (step, loss), and their mean."""
    at_step: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        if len(curves) > 1:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.5)
        for step, loss in curve:
            at_step[step].append(loss)
    steps = sorted(at_step)
    axis.plot(steps, [sum(at_step[s]) / len(at_step[s]) for s in steps], color=colour, marker="o", label=label)
