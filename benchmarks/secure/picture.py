"""Round times and bytes against the codec, final losses against none, and one aggregation beside Flower's."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/secure.json``'s values."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(15, 5))
    _draw_cost(left, values["cost"])
    _draw_loss(middle, values["loss_over_none"])
    _draw_peers(right, values["peers"])
    return figure


def _draw_cost(axis: Any, cost: dict[str, Any]) -> None:
    rows = {name: row["figures"]["round_s"] for name, row in cost.items() if "figures" in row}
    for place, row in enumerate(rows.values()):
        low, high = row["interval"]
        axis.plot([100 * (low - 1), 100 * (high - 1)], [place, place], color="tab:blue")
        axis.plot(100 * (row["ratio"] - 1), place, "o", color="tab:blue")
    axis.set_yticks(range(len(rows)), list(rows), fontsize=6)
    axis.axvspan(-5, 5, color="tab:green", alpha=0.15)
    axis.set(title="round time against int8 (bf16 for 2 bytes), %")


def _draw_loss(axis: Any, over_none: dict[str, Any]) -> None:
    for place, row in enumerate(over_none.values()):
        ratios = list(row["over_reference"].values())
        axis.plot([place] * len(ratios), [100 * (ratio - 1) for ratio in ratios], "o")
    axis.set_xticks(range(len(over_none)), list(over_none))
    axis.axhspan(-0.5, 0.5, color="tab:green", alpha=0.15)
    axis.set(title="final loss against none, one point per seed", ylabel="%")


def _draw_peers(axis: Any, peers: dict[str, Any]) -> None:
    rows = [row for row in peers.values() if "figures" in row]
    systems, rates = (list(dict.fromkeys(row[key] for row in rows)) for key in ("system", "rate_mbit"))
    for offset, rate in enumerate(rates):
        mine = [row for row in rows if row["rate_mbit"] == rate]
        places = [systems.index(row["system"]) + 0.4 * offset for row in mine]
        bars = axis.barh(places, [row["figures"]["seconds"] for row in mine], 0.4, label=f"{rate:g} Mbit/s")
        megabytes = [row["figures"]["upload_bytes"] / 1e6 for row in mine]
        axis.bar_label(bars, [f"{size:.1f} MB sent" for size in megabytes], fontsize=7)
    axis.set_yticks([place + 0.2 for place in range(len(systems))], systems, fontsize=7)
    axis.margins(x=0.2)
    axis.set(title="one aggregation", xlabel="seconds")
    if rates:
        axis.legend(fontsize=8)
