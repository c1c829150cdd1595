"""Speed-up against M/C with the ideal, and what a round's seconds were spent on at M = C."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

TICKS = (0.25, 0.5, 1, 2, 4)
PARTS = {
    "compute_s": "local steps",
    "exposed_s": "exchange not hidden",
    "drain_s": "last exchange",
    "wait_peer_s": "slower client",
    "between_s": "between rounds",
}


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/overlap.json``'s values."""
    measured = [one for one in values["configurations"] if not one["failed"]]
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for index, kind in enumerate(sorted({_kind(one) for one in measured})):
        rows = sorted((one["medians"] for one in measured if _kind(one) == kind), key=_ratio)
        left.plot([_ratio(r) for r in rows], [r["speedup"] for r in rows], "o-", color=f"C{index}", label=kind)
        left.plot([_ratio(r) for r in rows], [r["ideal_speedup"] for r in rows], ":", color=f"C{index}")
    left.set_xscale("log", base=2)
    left.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
    left.set(
        xlabel="M / C as measured", ylabel="times faster than delay 0", title="ParaBlock against FedBCD; dotted: ideal"
    )
    left.grid(alpha=0.3)
    left.legend(fontsize=8)
    _draw_parts(right, [one for one in measured if one["ratio"] == 1])
    return figure


def _draw_parts(axis: Any, measured: list[dict[str, Any]]) -> None:
    names = [f"{_kind(one)}\n{method}" for one in measured for method in one["seconds_spent"]]
    spent = [of_method for one in measured for of_method in one["seconds_spent"].values()]
    ideals = [one["medians"][f"ideal_{m}_round_s"] for one in measured for m in one["seconds_spent"]]
    base = [0.0] * len(spent)
    for part, label in PARTS.items():
        sizes = [max(0.0, one[part]) for one in spent]
        axis.bar(range(len(spent)), sizes, bottom=base, label=label)
        base = [b + s for b, s in zip(base, sizes, strict=True)]
    axis.plot(range(len(ideals)), ideals, "k_", markersize=24, label="ideal")
    axis.set_xticks(range(len(names)), names, fontsize=6, rotation=30)
    axis.set(ylabel="seconds per round", title="M = C: where the time went")
    axis.legend(fontsize=7)


def _kind(one: dict[str, Any]) -> str:
    return f"{one['clients']} clients, {one['topology']}, {one['compute']}"


def _ratio(medians: dict[str, float]) -> float:
    return medians["exchange_over_compute"]
