"""Held-out loss of every peer against steps, seconds at 100 Mbit/s and bytes sent."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

LINK = "100mbit"
MEGA = 1e6


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/peers.json``'s values; methods not timed on the link have no line in the middle."""
    figure, (steps, seconds, megabytes) = plt.subplots(1, 3, figsize=(15, 4.5), sharey=True)
    for row in values["table"]:
        loss = [point["loss"] for point in row["curve"]]
        style: dict[str, Any] = {"marker": "o", "markersize": 3, "label": row["title"]}
        steps.plot([_steps(row, point) for point in row["curve"]], loss, **style)
        megabytes.plot([max(point["sent_bytes"] / MEGA, 1.0) for point in row["curve"]], loss, **style)
        (line,) = seconds.plot([], [], **style)  # keeps the colours alike
        if LINK in row["round_s"]:
            line.set_data([point["rounds"] * row["round_s"][LINK] for point in row["curve"]], loss)
    for axis, label in (
        (steps, "optimizer steps per client"),
        (seconds, "seconds at 100 Mbit/s"),
        (megabytes, "MB sent"),
    ):
        for row in values["table"][:1]:
            axis.axhline(row["target_loss"], color="grey", linestyle=":", linewidth=1)
        axis.set_xlabel(label)
        axis.grid(alpha=0.3)
    seconds.set_xscale("symlog", linthresh=10)
    seconds.relim()
    seconds.autoscale_view()
    megabytes.set_xscale("log")
    steps.set_ylabel("held-out loss (nats per token)")
    steps.legend(fontsize=7)
    return figure


def _steps(row: dict[str, Any], point: dict[str, Any]) -> int:
    """The x value of a point; the drain's contribution arrives one round after the last step."""
    return point["rounds"] * row["steps_a_round"] if point["drained"] else point["step"]
