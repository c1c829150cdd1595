"""Ratios of step times with their 95 % intervals, and the limits aimed at."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/steal.json``'s values."""
    rows = _rows(values)
    figure, axis = plt.subplots(figsize=(8, 1.2 + 0.7 * len(rows)))
    for place, (label, middle, (low, high), limit) in enumerate(rows):
        axis.errorbar(middle, -place, xerr=[[middle - low], [high - middle]], fmt="o", capsize=4, color="tab:blue")
        if limit:
            axis.plot([limit, limit], [-place - 0.3, -place + 0.3], color="tab:red")
        axis.annotate(f"{middle:.3f}", (middle, -place), textcoords="offset points", xytext=(0, 7), ha="center")
        axis.annotate(label, (0.01, -place + 0.25), xycoords=("axes fraction", "data"), fontsize=8)
    axis.axvline(1, color="black", linewidth=0.8)
    axis.set(yticks=[], xlabel="time of a local step, ratio (bar: 95 % interval; red: the target limit)")
    axis.set_ylim(-len(rows) + 0.4, 0.6)
    return figure


def _rows(values: dict[str, Any]) -> list[tuple[str, float, list[float], float | None]]:
    rows: list[tuple[str, float, list[float], float | None]] = []
    if not values["alone"]["failed"]:
        one = values["alone"]["ratio"]
        rows.append(("one client / plain Lightning", one["ratio"], one["interval"], 1.01))
    for rate, found in values["in_flight"].items():
        if not found["failed"]:
            one = found["slowdown"]["ratio"]
            limit = 1.03 if rate == "100" else None
            rows.append((f"exchange in flight / none, {rate} Mbit/s", one["median"], one["interval"], limit))
    return rows
