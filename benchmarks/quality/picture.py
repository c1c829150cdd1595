"""Held-out loss against optimizer steps, one panel a size, one thin line a seed, the mean thick."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

COLOURS = {"parablock": "tab:blue", "fedbcd": "tab:orange", "fedavg": "tab:green"}
TITLES = {
    "whole": "whole model (30 layers)",
    "cut": "cut to its first 3 layers, three seeds",
    "quick": "cut to one layer",
}


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/quality.json``'s values."""
    runs = [run for run in values["runs"] if not run.get("failed")]
    sizes = [size for size in TITLES if any(run["size"] == size for run in runs)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for method, colour in COLOURS.items():
            curves = [run["held_out_loss"] for run in runs if (run["size"], run["method"]) == (size, method)]
            draw_curves(axis, curves, colour, method)
        axis.set(title=TITLES[size], xlabel="optimizer steps a client", ylabel="held-out loss (nats a token)")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def draw_curves(axis: Any, curves: list[list[list[float]]], colour: str, label: str) -> None:
    """One thin line a curve of (step, loss), and their mean."""
    at_step: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        if len(curves) > 1:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.5)
        for step, loss in curve:
            at_step[step].append(loss)
    steps = sorted(at_step)
    axis.plot(steps, [sum(at_step[s]) / len(at_step[s]) for s in steps], color=colour, marker="o", label=label)
