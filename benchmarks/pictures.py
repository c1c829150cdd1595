"""Draws results/<question>.png from results/<question>.json.

python -m benchmarks.pictures quality overlap
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib

from benchmarks.results import RESULTS, read_result

matplotlib.use("Agg")
import matplotlib.pyplot as plt

COLOURS = {"parablock": "tab:blue", "fedbcd": "tab:orange", "fedavg": "tab:green"}
TITLES = {"whole": "whole model (30 layers)", "cut": "cut to its first 3 layers, three seeds"}


def main() -> None:
    """Draw the named questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", nargs="+", choices=sorted(DRAWINGS), help="which results to draw")
    for question in parser.parse_args().questions:
        path = RESULTS / f"{question}.png"
        DRAWINGS[question](read_result(RESULTS / f"{question}.json")["values"], path)
        print(path.name)


def draw_quality(values: dict[str, Any], path: Path) -> None:
    """Held-out loss against optimizer steps, one panel a size, one thin line a seed, the mean thick."""
    runs = values["runs"]
    sizes = [size for size in TITLES if any(run["size"] == size for run in runs)]
    figure, axes = plt.subplots(1, len(sizes), figsize=(5.5 * len(sizes), 4), squeeze=False)
    for axis, size in zip(axes[0], sizes, strict=True):
        for method, colour in COLOURS.items():
            curves = [run["held_out_loss"] for run in runs if (run["size"], run["method"]) == (size, method)]
            _draw_curves(axis, curves, colour, method)
        axis.set(title=TITLES[size], xlabel="optimizer steps a client", ylabel="held-out loss (nats a token)")
        axis.grid(alpha=0.3)
        axis.legend()
    _save(figure, path)


def _draw_curves(axis: Any, curves: list[list[list[float]]], colour: str, label: str) -> None:
    at_step: dict[float, list[float]] = defaultdict(list)
    for curve in curves:
        if len(curves) > 1:
            axis.plot(*zip(*curve, strict=True), color=colour, linewidth=0.7, alpha=0.5)
        for step, loss in curve:
            at_step[step].append(loss)
    steps = sorted(at_step)
    axis.plot(steps, [sum(at_step[s]) / len(at_step[s]) for s in steps], color=colour, marker="o", label=label)


def draw_overlap(values: dict[str, Any], path: Path) -> None:
    """Seconds a round of both, measured beside ideal: the median of the pairs."""
    median = values["medians"]
    figure, axis = plt.subplots(figsize=(6, 4))
    names = ["blocking", "parablock"]
    measured = axis.bar([0, 1.5], [median[f"{name}_round_s"] for name in names], 0.5, label="measured")
    ideal = axis.bar([0.5, 2.0], [median[f"ideal_{name}_round_s"] for name in names], 0.5, label="ideal")
    for bars in (measured, ideal):
        axis.bar_label(bars, fmt="%.2f s")
    axis.set_xticks([0.25, 1.75], ["delay 0 (FedBCD)", "delay K (ParaBlock)"])
    axis.set(ylabel="seconds a round", title="Exchange about as long as the computation, two hosts")
    axis.legend()
    _save(figure, path)


def _save(figure: Any, path: Path) -> None:
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


DRAWINGS: dict[str, Callable[[dict[str, Any], Path], None]] = {"quality": draw_quality, "overlap": draw_overlap}


if __name__ == "__main__":
    main()
