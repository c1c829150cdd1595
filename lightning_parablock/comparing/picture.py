"""The picture of a comparison: held-out loss by samples, by seconds and by bytes."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.comparing.outcomes import CurvePoint, Outcome

AXES = {"samples": "samples per client", "seconds": "seconds of training", "sent_mb": "MB sent by a client"}


def draw_losses(outcomes: Sequence[Outcome], path: Path) -> None:
    """One colour a method, one line a seed; a panel whose figure no run knows shows optimizer steps.

    Args:
        outcomes: Runs that failed have no lines.
        path: The PNG file to write.
    """
    from matplotlib.figure import Figure  # it takes a second to import

    figure = Figure(figsize=(15, 4.8), dpi=130, layout="constrained")
    panels = figure.subplots(1, len(AXES), sharey=True)
    methods = list(dict.fromkeys(one.method for one in outcomes))
    for axes, (name, title) in zip(panels, AXES.items(), strict=True):
        known = any(getattr(point, name) is not None for one in outcomes for point in one.curve)
        shown, label = (name, title) if known else ("steps", "optimizer steps")
        for one in outcomes:
            xs, ys = line_of(one.curve, shown)
            first = one is next(other for other in outcomes if other.method == one.method)
            axes.plot(
                xs, ys, color=f"C{methods.index(one.method)}", marker="o", markersize=3, alpha=0.8,
                label=one.method if first else None,
            )  # fmt: skip
        axes.set_xlabel(label)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("held-out loss")
    panels[0].legend()
    figure.savefig(path)


def line_of(curve: Sequence[CurvePoint], name: str) -> tuple[list[float], list[float]]:
    """The points where the figure is known."""
    known = [(getattr(point, name), point.loss) for point in curve if getattr(point, name) is not None]
    return [x for x, _ in known], [y for _, y in known]
