"""Held-out loss against steps for each data set and partition, ParaBlock's loss over FedBCD's, and planned seconds."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter

from benchmarks.claims.figures import CLOSE_PERCENT
from benchmarks.harness.curves import COLOURS, draw_curves

ALL_CELLS = ("cut", "quick")
"""Sizes that cover all methods, data sets and partitions."""
MORE_COLOURS = {**COLOURS, "lora": "tab:red", "fedcybgd": "tab:purple"}


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/claims.json``'s values."""
    rows = values["table"]
    figure, axes = plt.subplots(2, 3, figsize=(18, 8.5))
    runs = [run for run in values["runs"] if not run["failed"] and run["size"] in ALL_CELLS]
    cells = list(dict.fromkeys((run["data"], run["partition"]) for run in runs))
    for axis, cell in zip(axes[:, :2].flat, cells, strict=False):
        _draw_cell(axis, [run for run in runs if (run["data"], run["partition"]) == cell], cell)
    _draw_over(axes[0, 2], [row for row in rows if "parablock" in row["method"] and row["over_baseline_percent"]])
    _draw_seconds(axes[1, 2], [row for row in rows if row["method"] in MORE_COLOURS and row["size"] in ALL_CELLS])
    return figure


def _draw_cell(axis: Any, runs: list[dict[str, Any]], cell: tuple[str, str]) -> None:
    for method, colour in MORE_COLOURS.items():
        curves = [run["held_out_loss"] for run in runs if run["method"] == method]
        if curves:
            draw_curves(axis, curves, colour, method)
    axis.set(title=", ".join(cell), xlabel="optimizer steps per client", ylabel="held-out loss (nats)")
    axis.set_yscale("log")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)


def _draw_over(axis: Any, rows: list[dict[str, Any]]) -> None:
    for place, row in enumerate(rows):
        axis.plot(row["over_baseline_percent"], [place] * len(row["over_baseline_percent"]), "o", color="tab:blue")
    axis.set_yticks(range(len(rows)), [_place_of(row) for row in rows], fontsize=7)
    axis.axvspan(-CLOSE_PERCENT, CLOSE_PERCENT, color="tab:green", alpha=0.15)
    axis.invert_yaxis()
    axis.set(title="final loss over FedBCD's, one point per seed", xlabel="% (on GSM8K, iid, unless noted)")


def _place_of(row: dict[str, Any]) -> str:
    """A row's method, and its cell if that is not the first one."""
    places = [name for name in (row["data"], row["partition"], row["size"]) if name not in ("gsm8k", "iid", "cut")]
    return f"{row['title']} ({', '.join(places)})" if places else row["title"]


def _draw_seconds(axis: Any, rows: list[dict[str, Any]]) -> None:
    marks = dict(zip(dict.fromkeys((row["data"], row["partition"]) for row in rows), "osD^", strict=False))
    for row in rows:
        cell = row["data"], row["partition"]
        axis.plot(row["planned_s"], row["mean_loss"], marks[cell], color=MORE_COLOURS[row["method"]])
    for cell, mark in marks.items():
        axis.plot([], [], mark, color="grey", label=", ".join(cell))
    axis.set_xscale("log")
    axis.set_xticks([30, 60, 100, 200, 400], minor=False)
    axis.xaxis.set_major_formatter(ScalarFormatter())
    axis.xaxis.set_minor_formatter(NullFormatter())
    axis.set(title="mean final loss", xlabel="planned seconds on 100 Mbit/s (not timed)", ylabel="held-out loss (nats)")
    axis.grid(alpha=0.3)
    if axis.get_legend_handles_labels()[0]:
        axis.legend(fontsize=8)
