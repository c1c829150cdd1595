"""Peak memory of each method in training, and the formula's value by its parts."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

TITLES = {"parablock": "ParaBlock", "adamw": "AdamW, all parameters", "lora": "LoRA, rank 16"}
MEGABYTE = 1e6


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/memory.json``'s values."""
    medians = values.get("medians", {})
    names = [name for name in TITLES if name in medians]
    figure, axis = plt.subplots(figsize=(11, 4.5))
    peaks = axis.bar(range(len(names)), [medians[n]["training_peak_bytes"] / MEGABYTE for n in names], 0.6)
    axis.bar_label(peaks, fmt="%.0f")
    labels = [TITLES[name] for name in names]
    if "formula" in medians:
        labels.append("formula of ParaBlock")
        _draw_formula(axis, len(names), medians["formula"])
    axis.set_xticks(range(len(labels)), labels)
    axis.set(ylabel="MB above the process before the model", title="Peak memory of a client, SmolLM2-135M, float32")
    return figure


def _draw_formula(axis: Any, place: int, formula: dict[str, Any]) -> None:
    base, parts = 0.0, formula["parts_bytes"] | {"activations (measured)": formula["activations_bytes"]}
    for index, (purpose, size) in enumerate(parts.items()):
        axis.bar(place, size / MEGABYTE, 0.6, bottom=base, label=purpose, color=f"C{(index + 1) % 10}")
        base += size / MEGABYTE
    axis.annotate(f"{base:.0f}", (place, base), ha="center", va="bottom")
    axis.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
