"""Mean squared gradient against rounds, log-log, one panel for each K and zeta; below, ParaBlock over FedBCD."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.rate.figures import FEDBCD, PARABLOCK

COLOURS = ("tab:blue", "tab:orange", "tab:green", "tab:red", "tab:purple")
STYLES: dict[str, dict[str, Any]] = {
    PARABLOCK: {"linestyle": "-", "marker": "o", "markersize": 4},
    FEDBCD: {"linestyle": "--", "marker": "s", "markersize": 7, "markerfacecolor": "none"},
}
NAMES = {PARABLOCK: "ParaBlock", FEDBCD: "FedBCD"}
DASHES = ("-", "--", ":", "-.")


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/rate.json``'s values."""
    rows = values["rows"]
    clients, steps, zetas = (_distinct(rows, name) for name in ("clients", "local_steps", "heterogeneity"))
    colour = dict(zip(clients, COLOURS, strict=False))
    n_panels = len(steps) + 1
    figure, axes = plt.subplots(
        n_panels, len(zetas), figsize=(5.6 * len(zetas), 4.6 * n_panels), squeeze=False, sharey="row"
    )
    for column, zeta in enumerate(zetas):
        for axis, local_steps in zip(axes[:, column], steps, strict=False):
            _draw_means(axis, values, {"local_steps": local_steps, "heterogeneity": zeta}, colour)
        _draw_prices(axes[-1, column], values, zeta, colour)
    return figure


def _draw_means(axis: Axes, values: dict[str, Any], where: dict[str, Any], colour: Mapping[int, str]) -> None:
    slopes = {(s["method"], s["clients"]): s for s in _picked(values["slopes"], where)}
    for row in _picked(values["rows"], where):
        fit = slopes[row["method"], row["clients"]]
        low, high = fit["interval"]
        label = f"N = {row['clients']}, {NAMES[row['method']]}: {fit['slope']:.3f} [{low:.3f}, {high:.3f}]"
        means = [sum(replicas) / len(replicas) for replicas in row["mean_squared_gradient"]]
        axis.loglog(row["rounds"], means, color=colour[row["clients"]], label=label, **STYLES[row["method"]])
    rounds = values["rows"][0]["rounds"]
    axis.loglog(rounds, [15 * t**-0.5 for t in rounds], color="grey", linewidth=1, label="slope -1/2")
    axis.set(
        title=f"K = {where['local_steps']}, ζ = {where['heterogeneity']:g}",
        ylabel="mean of |∇f(W)|² over a run (no unit)",
    )
    _finish(axis, rounds, "slope, 95 % interval")


def _draw_prices(axis: Axes, values: dict[str, Any], zeta: float, colour: Mapping[int, str]) -> None:
    rounds, steps = values["rows"][0]["rounds"], _distinct(values["rows"], "local_steps")
    for found in _picked(values["prices"], {"heterogeneity": zeta}):
        ratios = [point["ratio"] for point in found["by_rounds"]]
        low, high = zip(*(point["interval"] for point in found["by_rounds"]), strict=True)
        look = {"color": colour[found["clients"]], "linestyle": DASHES[steps.index(found["local_steps"])]}
        axis.semilogx(rounds, ratios, marker="o", markersize=4, label=_name(found), **look)
        axis.fill_between(rounds, low, high, color=look["color"], alpha=0.15)
    axis.axhline(1.0, color="grey", linewidth=1)
    axis.set(title=f"cost of one round of staleness, ζ = {zeta:g}", ylabel="ParaBlock / FedBCD, mean of |∇f(W)|²")
    _finish(axis, rounds, None)


def _name(found: dict[str, Any]) -> str:
    return f"N = {found['clients']}, K = {found['local_steps']}"


def _finish(axis: Axes, rounds: list[int], legend: str | None) -> None:
    axis.set_xticks(rounds, [str(t) for t in rounds])
    axis.set_xticks([], minor=True)
    axis.set_xlabel("T (rounds of a run)")
    axis.grid(alpha=0.3, which="both")
    axis.legend(fontsize=8, title=legend, title_fontsize=8)


def _picked(rows: list[dict[str, Any]], where: dict[str, Any]) -> list[dict[str, Any]]:
    return [row for row in rows if all(row[name] == value for name, value in where.items())]


def _distinct(rows: list[dict[str, Any]], name: str) -> list[Any]:
    return sorted({row[name] for row in rows})
