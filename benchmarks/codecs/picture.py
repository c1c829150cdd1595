"""GB/s of each codec, seconds per exchange on each link with the bytes saved, final loss against none, residuals."""

from __future__ import annotations

from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/codecs.json``'s values."""
    residuals = [row for row in values.get("residuals", ()) if row.get("residual_over_delta")]
    figure, axes = plt.subplots(1, 4 if residuals else 3, figsize=(18 if residuals else 14, 4))
    left, middle, right = axes[:3]
    _draw_speed(left, values["speed_gb_s"])
    _draw_exchanges(middle, [row for row in values["exchanges"] if "exchange_s" in row])
    ratios = {codec: one for codec, one in values["loss_over_none"].items() if one}
    for place, one in enumerate(ratios.values()):
        right.plot([place] * len(one), [100 * (ratio - 1) for ratio in one], "o")
    right.set_xticks(range(len(ratios)), list(ratios))
    right.axhspan(-0.5, 0.5, color="tab:green", alpha=0.15)
    right.set(title="final loss against none, one point per seed", ylabel="%")
    for axis in axes[3:]:
        _draw_residuals(axis, residuals)
    return figure


def _draw_residuals(axis: Any, rows: list[dict[str, Any]]) -> None:
    for row in rows:
        ratios = row["residual_over_delta"]
        axis.plot(range(1, len(ratios) + 1), ratios, "o-", markersize=3, label=row["codec"])
    axis.set(title="kept back by error feedback", xlabel="visit of a block", ylabel="norm over the delta's")
    axis.legend(fontsize=8)


def _draw_speed(axis: Any, speed: dict[str, Any]) -> None:
    names = [name for name in speed if name != "failed"]
    for offset, direction in enumerate(("encode", "decode")):
        heights = [median(speed[name].get(direction, [0.0])) for name in names]
        axis.bar([place + 0.4 * offset for place in range(len(names))], heights, 0.4, label=direction)
    axis.set_yscale("log")
    axis.set_xticks([place + 0.2 for place in range(len(names))], names)
    axis.set(title="one thread", ylabel="GB of float32 per second")
    axis.legend(fontsize=8)


def _draw_exchanges(axis: Any, rows: list[dict[str, Any]]) -> None:
    rates, codecs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("rate_mbit", "codec"))
    for offset, rate in enumerate(rates):
        mine = [row for row in rows if row["rate_mbit"] == rate]
        places = [codecs.index(row["codec"]) + 0.4 * offset for row in mine]
        bars = axis.bar(places, [row["exchange_s"] for row in mine], 0.4, label=f"{rate} Mbit/s")
        axis.bar_label(bars, [f"{row.get('times_fewer_bytes', 1):.2f}x" for row in mine], fontsize=7)
    axis.set_yscale("log")
    axis.set_xticks([place + 0.2 for place in range(len(codecs))], codecs)
    axis.set(title="exchange of 57 MB; fewer bytes at the socket", ylabel="seconds")
    axis.legend(fontsize=8)
