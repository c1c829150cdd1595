"""Draws timeline.svg: the first seconds of FedBCD and of ParaBlock on the same link, as results/overlap.json has them.

Run it as ``python docs/images/timeline.py``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

RESULTS = Path(__file__).resolve().parents[2] / "results" / "overlap.json"
PICTURE = Path(__file__).with_suffix(".svg")
SECONDS = 8.0
"""How much of the run is drawn."""
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd")
"""Of rounds, in turn: an exchange has the color of the round whose block it carries."""
SHADE = "#eeeeee"
INK = "#333333"


def main() -> None:
    """Draw the first client of the first pair of runs with two clients, real computation and M/C of 1."""
    configurations = json.loads(RESULTS.read_text(encoding="utf-8"))["values"]["configurations"]
    wanted = {"clients": 2, "topology": "sharded", "compute": "real", "ratio": 1.0}
    (configuration,) = (c for c in configurations if wanted.items() <= c.items())
    pair = configuration["pairs"][0]
    matplotlib.rcParams.update({"svg.hashsalt": PICTURE.name, "font.size": 10, "text.color": INK})
    figure = Figure(figsize=(10, 3.3), layout="constrained")
    axes = figure.add_subplot()
    for top, name, run in ((0.0, "FedBCD", pair["blocking"]), (2.7, "ParaBlock", pair["parablock"])):
        _draw(axes, top, name, run["clients"][0])
    axes.set_xlim(0, SECONDS)
    axes.set_ylim(4.9, -0.5)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel(f"seconds; SmolLM2-135M on two hosts, links of {pair['parablock']['rate_mbit']:.0f} Mbit/s")
    figure.savefig(PICTURE, metadata={"Date": None})


def _draw(axes: Axes, top: float, name: str, rounds: dict[str, Any]) -> None:
    spans = {
        "compute": (rounds["start_s"], rounds["end_s"]),
        "exchange": (rounds["exchange_ready_s"], rounds["exchange_end_s"]),
    }
    for row, (what, (starts_s, ends_s)) in enumerate(spans.items()):
        y = top + row
        axes.broken_barh([(0, SECONDS)], (y, 0.85), facecolor=SHADE, zorder=1)
        axes.text(-0.1, y + 0.45, f"{name}  {what}" if row == 0 else what, ha="right", va="center", clip_on=False)
        for number, (start_s, end_s) in enumerate(zip(starts_s, ends_s, strict=True)):
            if start_s < SECONDS:
                color = COLORS[number % len(COLORS)]
                bar = (start_s, min(end_s, SECONDS) - start_s)
                axes.broken_barh([bar], (y, 0.85), facecolor=color, edgecolor="white", linewidth=0.8, zorder=2)
                if bar[1] > 0.2:
                    axes.text(start_s + bar[1] / 2, y + 0.45, str(number), color="white", ha="center", va="center")
    done = sum(end_s <= SECONDS for end_s in rounds["exchange_end_s"])
    axes.text(SECONDS + 0.1, top + 0.95, f"{done} rounds\nexchanged", va="center", clip_on=False, fontweight="bold")


if __name__ == "__main__":
    main()
