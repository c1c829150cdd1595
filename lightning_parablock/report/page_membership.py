"""Membership on the report page: when sites came and went, as a table of openings and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from lightning_parablock.callbacks.palette import COLOURS
from lightning_parablock.callbacks.presence import Gap, gaps
from lightning_parablock.elastic.journal import TOLD, Line
from lightning_parablock.report.page_figures import gap_bars, laid_out
from lightning_parablock.runs.files import RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Row = tuple[str, ...]
MEMBERSHIP_HEADS: Row = ("time (UTC)", "generation", "members", "joined", "gone", "from round", "exchanged again")
_ROW_PX = 34


def membership_rows(run: RunFiles) -> list[Row]:
    """One row per opening that the site has noted, under :data:`MEMBERSHIP_HEADS`, and one for how its part ended."""
    return [_row(line) for line in run.membership]


def membership_note(run: RunFiles) -> str:
    """What the table and the figure leave open; empty where they show everything."""
    if any(line.event == TOLD for line in run.membership):
        return "Generations that had opened before this site came have no time, and are not part of the figure."
    return ""


def membership_figure(run: RunFiles) -> Figure | None:
    """A row per site: when it was a member, and gaps in which it was none; None with a fixed membership."""
    from plotly.graph_objects import Bar, Figure

    lines = [line for line in run.membership if line.event != TOLD]
    records = [line.record for line in lines if line.record is not None]
    if not records:
        return None
    begin_s, end_s = lines[0].time_s, max(lines[-1].time_s, _last_s(run, lines[0].time_s))
    absent = [
        Gap(gap.client, gap.start_s - begin_s, gap.end_s - begin_s, gap.why) for gap in gaps(run.membership, end_s)
    ]
    absent = [gap for gap in absent if gap.start_s >= 0]
    clients = sorted(run.names.clients)
    figure = Figure()
    for client in clients:
        spells = _spells([gap for gap in absent if gap.client == client], end_s - begin_s)
        label = run.names.label(client)
        figure.add_trace(
            Bar(
                name=label,
                orientation="h",
                showlegend=False,
                y=[label] * len(spells),
                base=[start_s for start_s, _ in spells],
                x=[length_s for _, length_s in spells],
                hovertext=[f"{label}: a member<br>{start_s:.1f} s, for {n_s:.1f} s" for start_s, n_s in spells],
                hoverinfo="text",
                marker={"color": COLOURS[client % len(COLOURS)]},
            )
        )
    if absent:
        figure.add_trace(gap_bars(Bar, absent, lambda client: (run.names.label(client),)))
    for line in lines:
        if line.record is not None:
            figure.add_vline(line.time_s - begin_s, line={"color": "#999999", "width": 1, "dash": "dot"})
    figure.update_layout(barmode="overlay", bargap=0.35, xaxis_title="seconds since this site's first generation")
    figure.update_yaxes(categoryorder="array", categoryarray=[run.names.label(client) for client in reversed(clients)])
    return laid_out(figure, height_px=_ROW_PX * max(3, len(clients)) + 110)


def _row(line: Line) -> Row:
    time = datetime.fromtimestamp(line.time_s, UTC).strftime("%Y-%m-%d %H:%M:%S")
    record = line.record
    if record is None:
        return (time, "", "", "", f"site {line.site}: {line.event}{': ' if line.why else ''}{line.why}", "", "")
    return (
        "" if line.event == TOLD else time,
        str(record.generation),
        ", ".join(sorted(record.sites[client] for client in record.members)),
        ", ".join(line.joined),
        "; ".join(f"{name}: {why.removeprefix('lost: ')}" for name, why in line.gone.items()),
        str(record.first_round),
        ", ".join([*map(str, line.redone), *(f"{round_index}: dropped" for round_index in line.dropped)]),
    )


def _last_s(run: RunFiles, begin_s: float) -> float:
    """The end of the last exchange, as far as the timeline is known."""
    return begin_s + max((one.exchange_end_s for one in run.rounds), default=0.0)


def _spells(absent: Sequence[Gap], end_s: float) -> list[tuple[float, float]]:
    """Start and length of the times between a client's gaps."""
    starts, ends = [0.0, *(gap.end_s for gap in absent)], [*(gap.start_s for gap in absent), end_s]
    return [(start_s, stop_s - start_s) for start_s, stop_s in zip(starts, ends, strict=True) if stop_s > start_s]
