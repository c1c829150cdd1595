"""Finished rounds as a picture: per client a row of computation and, below it, a row of exchanges.

One colour a block. The exchange of a round runs while the next round is computed; seconds in which the client stood
still are hatched over its computation.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_parablock.callbacks.trace import THREADS, Span, exposed_span, peer_span
from lightning_parablock.records import RoundRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EXPOSED_COLOUR, PEER_COLOUR = "#d62728", "#555555"
_LEGEND_BLOCKS = 16
_CLIENT_HEIGHT = 2.6
"""Height of a client's two rows, each 1 high, and the gap to the next client."""


def draw_timeline(records: Sequence[RoundRecord], path: Path, *, at_most_rounds: int = 40) -> None:
    """Draw the first rounds: per client computation above and exchange below, one colour a block, waits hatched.

    Args:
        records: Of all clients; nothing is drawn if empty.
        path: The PNG file to write.
        at_most_rounds: Draw no more rounds than these, so that bars stay readable.
    """
    from matplotlib.figure import Figure  # it takes a second to import, and most processes never draw

    shown = [record for record in records if record.round < min(r.round for r in records) + at_most_rounds]
    if not shown:
        return
    clients = sorted({record.client for record in shown})
    figure = Figure(figsize=(14, 1.6 + 1.5 * len(clients)), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    colours = _colours(record.block for record in records)
    origin_s = min(record.start_s for record in shown)
    for record in shown:
        _draw_round(axes, record, 2.6 * clients.index(record.client), origin_s, colours[record.block])
    _label_axes(axes, clients, shown, len({record.round for record in records}))
    _add_legend(axes, colours)
    figure.savefig(path)


def _colours(blocks: Iterable[str]) -> dict[str, Any]:
    from matplotlib import colormaps

    names = sorted(set(blocks), key=natural)
    # Without the reds and greys, which mean standing still.
    few = [colour for i, colour in enumerate(colormaps["tab20"].colors) if i not in (6, 7, 14, 15)]  # type: ignore[attr-defined]
    many = colormaps["viridis"].resampled(len(names))
    return {name: few[i] if len(names) <= len(few) else many(i) for i, name in enumerate(names)}


def natural(name: str) -> list[tuple[int, str]]:
    """Sorts ``layers.9`` before ``layers.10``."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _draw_round(axes: Axes, record: RoundRecord, base: float, origin_s: float, colour: Any) -> None:
    def bar(span: Span, y: float, **style: Any) -> None:
        axes.broken_barh([(span[0] - origin_s, span[1])], (y, 0.9), **style)

    rounds = {"facecolors": colour, "edgecolors": "white", "linewidth": 0.6}
    bar((record.start_s, record.end_s - record.start_s), base, **rounds)
    bar((record.exchange_start_s, record.exchange_end_s - record.exchange_start_s), base + 1, **rounds)
    for span, edge in ((peer_span(record), PEER_COLOUR), (exposed_span(record), EXPOSED_COLOUR)):
        if span[1] > 0:  # above the bar of the next round, in which it lies
            bar(span, base, facecolors="white", edgecolors=edge, hatch="////", linewidth=0.8, zorder=3)


def _label_axes(axes: Axes, clients: Sequence[int], shown: Sequence[RoundRecord], n_rounds: int) -> None:
    rows = [
        (_CLIENT_HEIGHT * i + 0.45 + j, f"client {c} {name}")
        for i, c in enumerate(clients)
        for j, name in enumerate(THREADS)
    ]
    axes.set_yticks([y for y, _ in rows], [text for _, text in rows])
    axes.invert_yaxis()
    axes.set_xlabel("seconds since the first round began")
    first, last = min(record.round for record in shown), max(record.round for record in shown)
    axes.set_title(f"rounds {first} to {last} of {n_rounds}; one colour a block", loc="left")
    axes.spines[["top", "right"]].set_visible(False)


def _add_legend(axes: Axes, colours: dict[str, Any]) -> None:
    from matplotlib.patches import Patch

    blocks = [Patch(color=colour, label=name) for name, colour in colours.items()]
    waits = [
        Patch(facecolor="white", edgecolor=EXPOSED_COLOUR, hatch="////", label="exposed: stood still for the exchange"),
        Patch(facecolor="white", edgecolor=PEER_COLOUR, hatch="////", label="stood still for a slower client"),
    ]
    shown = blocks if len(blocks) <= _LEGEND_BLOCKS else [blocks[0], blocks[-1]]
    axes.legend(handles=[*shown, *waits], loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=5, fontsize=8)
