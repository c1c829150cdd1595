"""Finished rounds as a picture: per client a row of computation and, below it, a row of exchanges.

One colour per block. The exchange of a round runs while the next round is computed; before it, in grey, a delta
waits for other clients to submit theirs. Time in which the client was idle is hatched over its computation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_parablock.callbacks.palette import (
    EXPOSED_COLOUR,
    GAP_COLOUR,
    SLOWER_COLOUR,
    SUBMITTED_COLOUR,
    block_colours,
    legend_blocks,
)
from lightning_parablock.callbacks.presence import Gap
from lightning_parablock.callbacks.trace import (
    THREADS,
    Span,
    exchange_span,
    exposed_span,
    peer_span,
    submitted_span,
)
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.records import RoundRecord
from lightning_parablock.system.units import readable_s

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SHORTEST_WAIT_S = 1e-3
"""Shorter waits are only the latency of waking a thread; pictures omit them, and say so."""
_SHORTEST_PART = 1e-4
"""Fraction of the time drawn: a fifth of a pixel."""
_WITH_EDGE = 50
"""Bars at least this many times the shortest part have room for a white edge."""
_WIDTH_INCHES = 14
_LEGEND_ROW_INCHES = 0.2
_LEGEND_CHARACTERS = 200
"""Characters of the legend's font that fit in the width of the picture."""
_PATCH_CHARACTERS = 8
"""Room for a colour and for the gap to the next column."""
_WAITS = (
    "exposed: stood still for the exchange",
    "stood still for a slower client",
    "delta submitted, other clients not yet",
)
_GAP = "no member of the run"
_GAP_STYLE: dict[str, Any] = {"facecolor": GAP_COLOUR, "edgecolor": "#b0a0a0", "hatch": "xx", "linewidth": 0}
_CLIENT_HEIGHT = 2.6
"""Height of a client's two rows, each 1 high, and the gap to the next client."""


def draw_timeline(
    records: Sequence[RoundRecord],
    path: Path,
    names: ClientNames = NO_NAMES,
    gaps: Sequence[Gap] = (),
    *,
    at_most_rounds: int = 40,
) -> None:
    """Draw the first rounds: per client computation above and exchange below, one colour per block, waits hatched.

    Args:
        records: Round records of all clients; nothing is drawn if empty.
        path: Path of the PNG file.
        names: Names of the clients.
        gaps: Times in which clients of an elastic run were no members, drawn behind their rows.
        at_most_rounds: Maximum number of rounds to draw, so that bars stay readable.
    """
    from matplotlib.figure import Figure  # it takes a second to import, and most processes never draw

    shown = [record for record in records if record.round < min(r.round for r in records) + at_most_rounds]
    if not shown:
        return
    first_s, last_s = min(record.start_s for record in shown), max(record.exchange_end_s for record in shown)
    gaps = [gap for gap in gaps if gap.start_s < last_s and gap.end_s > first_s]
    clients = sorted({*(record.client for record in shown), *(gap.client for gap in gaps)})
    colours = block_colours(record.block for record in records)
    n_columns, n_rows = _legend_shape([*legend_blocks(colours), *_WAITS, *([_GAP] if gaps else [])])
    height_inches = 1.5 + 1.5 * len(clients) + _LEGEND_ROW_INCHES * n_rows
    figure = Figure(figsize=(_WIDTH_INCHES, height_inches), dpi=130, layout="constrained")
    axes = figure.add_subplot()
    origin_s = first_s
    shortest_s = shortest_drawn_s(record.exchange_end_s - origin_s for record in shown)
    for record in shown:
        base = _CLIENT_HEIGHT * clients.index(record.client)
        _draw_round(axes, record, base, origin_s, colours[record.block], shortest_s)
    for gap in gaps:
        start_s, end_s = max(gap.start_s, first_s), min(gap.end_s, last_s)
        rows = (_CLIENT_HEIGHT * clients.index(gap.client), 1.9)
        axes.broken_barh([(start_s - origin_s, end_s - start_s)], rows, zorder=0, **_GAP_STYLE)
    _label_axes(axes, [names.label(client) for client in clients])
    axes.set_title(_title(shown, len({record.round for record in records}), shortest_s), loc="left", fontsize=10)
    _add_legend(axes, colours, n_columns, has_gaps=bool(gaps))
    figure.savefig(path)


def shortest_drawn_s(ends_s: Iterable[float]) -> float:
    """Shortest wait that is visible in a picture of the given length, in seconds."""
    return max(SHORTEST_WAIT_S, _SHORTEST_PART * max(ends_s))


def left_out(waits_s: Iterable[float], shortest_s: float) -> str:
    """Note on the waits that a picture omits; empty where it shows all."""
    short = [wait_s for wait_s in waits_s if 0 < wait_s < shortest_s]
    if not short:
        return ""
    many = f"{len(short)} waits" if len(short) > 1 else "1 wait"
    return f"{many} shorter than {_ms(shortest_s)} not drawn ({_ms(sum(short))} in all)"


def _ms(seconds: float) -> str:
    return f"{1e3 * seconds:.3g} ms" if seconds < 0.9995 else readable_s(seconds)


def _draw_round(axes: Axes, record: RoundRecord, base: float, origin_s: float, colour: str, shortest_s: float) -> None:
    def bar(span: Span, y: float, **style: Any) -> None:
        axes.broken_barh([(span[0] - origin_s, span[1])], (y, 0.9), **style)

    def plain(span: Span, y: float, colour: str, zorder: int = 2) -> None:
        # A span too short for a bar is drawn as a line of its colour: a white edge would hide it.
        edge = "white" if span[1] > _WITH_EDGE * shortest_s else colour
        bar(span, y, facecolors=colour, edgecolors=edge, linewidth=0.6, zorder=zorder)

    plain((record.start_s, record.end_s - record.start_s), base, colour)
    if submitted_span(record)[1] >= shortest_s:
        plain(submitted_span(record), base + 1, SUBMITTED_COLOUR, zorder=1)  # the exchange before it may still run
    plain(exchange_span(record), base + 1, colour)
    for span, edge in ((peer_span(record), SLOWER_COLOUR), (exposed_span(record), EXPOSED_COLOUR)):
        if span[1] >= shortest_s:  # above the bar of the next round, which contains it
            bar(span, base, facecolors="white", edgecolors=edge, hatch="////", linewidth=0.8, zorder=3)


def _label_axes(axes: Axes, labels: Sequence[str]) -> None:
    rows = [
        (_CLIENT_HEIGHT * i + 0.45 + j, f"{label} {name}")
        for i, label in enumerate(labels)
        for j, name in enumerate(THREADS)
    ]
    axes.set_yticks([y for y, _ in rows], [text for _, text in rows])
    axes.set_ylim(_CLIENT_HEIGHT * len(labels) - 0.4, -0.3)  # the first client is on top
    axes.margins(x=0.01)
    axes.set_xlabel("seconds since the first round drawn began")
    axes.spines[["top", "right"]].set_visible(False)


def _title(shown: Sequence[RoundRecord], n_rounds: int, shortest_s: float) -> str:
    first, last = min(record.round for record in shown), max(record.round for record in shown)
    few = f"the first {last - first + 1} of {n_rounds}, " if n_rounds > last - first + 1 else ""
    short = left_out((wait_s for r in shown for wait_s in (r.exposed_s, r.wait_peer_s)), shortest_s)
    return f"rounds {first} to {last} ({few}counted from 0); one colour per block" + (f"; {short}" if short else "")


def _legend_shape(labels: Sequence[str]) -> tuple[int, int]:
    """Numbers of columns and rows of a legend that is no wider than the picture."""
    n_columns = min(5, max(1, _LEGEND_CHARACTERS // (max(map(len, labels)) + _PATCH_CHARACTERS)))
    return n_columns, -(-len(labels) // n_columns)


def _add_legend(axes: Axes, colours: dict[str, str], n_columns: int, *, has_gaps: bool) -> None:
    from matplotlib.patches import Patch

    blocks = [Patch(color=colours[name], label=name) for name in legend_blocks(colours)]
    exposed, slower, submitted = _WAITS
    waits = [
        Patch(facecolor="white", edgecolor=EXPOSED_COLOUR, hatch="////", label=exposed),
        Patch(facecolor="white", edgecolor=SLOWER_COLOUR, hatch="////", label=slower),
        Patch(color=SUBMITTED_COLOUR, label=submitted),
        *([Patch(**_GAP_STYLE, label=_GAP)] if has_gaps else []),
    ]
    axes.figure.legend(handles=[*blocks, *waits], loc="outside lower center", ncols=n_columns, fontsize=8)
