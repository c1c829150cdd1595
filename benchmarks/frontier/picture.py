"""Loss reached in 10, 30 and 60 minutes at both rates against peak memory; the line joins what is worth its memory."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from benchmarks.frontier.choice import Cell, Row, front
from benchmarks.frontier.figures import MINUTES, RATES_MBIT
from benchmarks.frontier.methods import METHODS

GIGA = 1e9
TITLE_WIDTH = 180
COLOURS = {name: f"C{place}" for place, name in enumerate(METHODS)}
MARKERS = {"model": "o", "adapters": "^"}
HIGHEST = 1.1
"""Losses above the lowest one times this are written at the upper edge: they would flatten all others."""


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/frontier.json``'s values, with a note on what has not been run yet."""
    rows = [row for row in values["table"] if row["data"] == "gsm8k"]
    figure, axes = plt.subplots(len(RATES_MBIT), len(MINUTES), figsize=(17, 9), sharex=True, sharey=True, squeeze=False)
    cells = [Cell(f"{rate}mbit", str(minutes)) for rate in RATES_MBIT for minutes in MINUTES]
    lowest = min((loss for cell in cells for row in rows for loss in cell.of(row)["losses"]), default=1.0)
    for axis, cell in zip(axes.flat, cells, strict=True):
        _draw_cell(axis, rows, cell, lowest * HIGHEST)
    axes[0, 0].set_ylim(lowest * 0.99, lowest * HIGHEST)  # of all: they share it
    for axis in axes[:, 0]:
        axis.set_ylabel("held-out loss on GSM8K (nats per token)")
    for axis in axes[-1]:
        axis.set_xlabel("peak memory of a client, GB")
    if rows:
        axes[0, -1].legend(handles=_legend(rows), fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    figure.suptitle(_title(values["missing"]), fontsize=10)
    return figure


def _draw_cell(axis: Any, rows: Sequence[Row], cell: Cell, highest: float) -> None:
    axis.set_title(f"{cell.minutes} minutes at {cell.link.removesuffix('mbit')} Mbit/s (planned)", fontsize=10)
    for row in rows:
        at_gb, found, colour = row["peak_bytes"] / GIGA, cell.of(row), COLOURS[row["method"]]
        axis.plot([at_gb] * len(found["losses"]), found["losses"], color=colour, linewidth=1.5)
        if found["mean_loss"] > highest:
            said = f"{found['mean_loss']:.2f} ↑"
            axis.annotate(said, (at_gb, highest), color=colour, ha="center", va="top", fontsize=9)
            continue
        face = "none" if found["has_ended"] else colour
        axis.plot(at_gb, found["mean_loss"], MARKERS[row["trains"]], color=colour, markerfacecolor=face, markersize=9)
    worth = front(rows, cell)
    axis.step(
        [row["peak_bytes"] / GIGA for row in worth], [cell.loss(row) for row in worth], where="post", color="grey",
        linewidth=1, linestyle=":", zorder=0,
    )  # fmt: skip
    axis.grid(alpha=0.3)


def _legend(rows: Sequence[Row]) -> list[Line2D]:
    shown = [
        Line2D([], [], color=COLOURS[row["method"]], marker=MARKERS[row["trains"]], linestyle="", label=row["title"])
        for row in rows
    ]
    ended = Line2D([], [], color="grey", marker="o", linestyle="", markerfacecolor="none", label="hollow: run is over")
    worth = Line2D([], [], color="grey", linestyle=":", label="lowest loss for a memory")
    return [*shown, ended, worth]


def _title(missing: dict[str, str]) -> str:
    told = "SmolLM2-135M, two clients, equal steps: lower and further left is better; bars span the seeds"
    if not missing:
        return told
    left = "; ".join(f"{title}: {what}" for title, what in missing.items())
    return f"{told}\n{textwrap.fill(f'not made yet: {left}', TITLE_WIDTH)}"
