"""Seconds per round against the number of clients, measured and planned."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/scale.json``'s values."""
    rows = [row for row in values["configurations"] if "round_s" in row]
    kinds = list(dict.fromkeys((row["topology"], row["method"]) for row in rows))
    figure, axis = plt.subplots(figsize=(7.5, 4.5))
    for index, kind in enumerate(kinds):
        mine = [row for row in rows if (row["topology"], row["method"]) == kind]
        clients = [row["clients"] for row in mine]
        axis.plot(clients, [row["round_s"] for row in mine], "o-", color=f"C{index}", label=", ".join(kind))
        planned = [row.get("probed", row["nominal"])["round_s"] for row in mine]
        axis.plot(clients, planned, ":", color=f"C{index}")
    axis.set(
        xticks=sorted({row["clients"] for row in rows}),
        xlabel="clients",
        ylabel="seconds per round",
        title=f"Measured (points) and planned (dotted); computation: {values['compute']}",
        ylim=(0, None),
    )
    axis.grid(alpha=0.3)
    axis.legend()
    return figure
