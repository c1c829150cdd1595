"""Peak memory on the device by shape and method, and copies between device and host."""

from __future__ import annotations

from statistics import median
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

GIGABYTE = 1e9


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/gpu.json``'s values."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    rows = [row for row in values["memory"] if not row["failed"]]
    bars = left.bar(range(len(rows)), [row["peak_bytes"] / GIGABYTE for row in rows])
    left.bar_label(bars, fmt="%.1f")
    left.plot(
        range(len(rows)), [row.get("formula_bytes", float("nan")) / GIGABYTE for row in rows], "k_", markersize=24
    )
    left.set_xticks(range(len(rows)), [f"{row['shape']}\n{row['method']}" for row in rows])
    left.set(ylabel="GB on the device", title="Peak memory, bfloat16 (dash: formula)")
    copies = {name: rates for name, rates in values["copies_gb_s"].items() if name != "failed"}
    right.barh(range(len(copies)), [median(rates) for rates in copies.values()])
    right.set_yticks(range(len(copies)), list(copies))
    right.set(xlabel="GB/s", title="Copies between device and host")
    return figure
