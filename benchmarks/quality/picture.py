"""Held-out loss against optimizer steps: one panel per size, a thin line per seed, a thick line for the mean."""

from __future__ import annotations

from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from benchmarks.harness.curves import COLOURS, draw_curves
from benchmarks.quality import delays

TITLES = {
    "whole": "whole model (30 layers)",
    "cut": "cut to its first 3 layers, three seeds",
    "quick": "cut to one layer",
}
TITLES.update({delays.SIZES[size]: f"{title}: the first delay" for size, title in TITLES.items()})


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/quality.json``'s values."""
    runs = [run for run in values["runs"] if not run.get("failed")]
    sizes = [size for size in TITLES if any(run["size"] == size for run in runs)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for method, colour in _colours(size).items():
            curves = [run["held_out_loss"] for run in runs if (run["size"], run["method"]) == (size, method)]
            draw_curves(axis, curves, colour, method)
        axis.set(title=TITLES[size], xlabel="optimizer steps per client", ylabel="held-out loss (nats per token)")
        axis.grid(alpha=0.3)
        axis.legend()
    return figure


def _colours(size: str) -> dict[str, Any]:
    if size not in delays.SIZES.values():
        return COLOURS
    names, shades = list(delays.methods(1)), mpl.colormaps["viridis"]
    return {name: shades(index / (len(names) - 1)) for index, name in enumerate(names)}
