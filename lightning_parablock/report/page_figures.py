"""Figures of the report page: losses by round, second and byte, a zoomable timeline, and hidden exchange."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lightning_parablock.callbacks.palette import (
    COLOURS,
    EXPOSED_COLOUR,
    GAP_COLOUR,
    SLOWER_COLOUR,
    SUBMITTED_COLOUR,
    block_colours,
    legend_blocks,
)
from lightning_parablock.callbacks.picture import SHORTEST_WAIT_S, left_out
from lightning_parablock.callbacks.presence import Gap
from lightning_parablock.callbacks.trace import SUBMITTED
from lightning_parablock.federation.names import NO_NAMES, ClientNames
from lightning_parablock.records import first_of_each_round
from lightning_parablock.runs.files import ClientRound, Point, RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

_ROW_PX = 34
_MARGINS_PX = {"l": 60, "r": 50, "t": 40, "b": 50}
_SLIDER_PX = 56
NO_MEMBER = "no member of the run"
STOOD_STILL, SLOWER = "stood still for the exchange", "stood still for a slower client"


@dataclass(frozen=True)
class Clock:
    """Rounds, seconds and bytes of a run as functions of the optimizer steps made.

    Args:
        rounds: Rounds of all clients.
        round_steps: Optimizer steps of a round on a rank: K for each turn.
        n_clients: Number of clients that these rounds are of.
    """

    rounds: Sequence[ClientRound]
    round_steps: int
    n_clients: int

    def round_of(self, step: int) -> float:
        """Number of rounds that had passed, with the fraction of the running one."""
        return step / self.round_steps

    def seconds_of(self, step: int) -> float | None:
        """Seconds since the first round began, on each round's first client; None where the timeline has no data."""
        first = self._first_clients
        passed, rest = divmod(step, self.round_steps)
        if passed in first:
            return first[passed].start_s + first[passed].compute_s * rest / self.round_steps
        if rest or passed - 1 not in first:  # not part of this run, or of the part before it was resumed
            return None
        last = first[passed - 1]
        return max(last.start_s + last.compute_s, last.exchange_end_s)

    def megabytes_of(self, step: int) -> float | None:
        """Megabytes sent by a client for the rounds trained by then, the mean over the clients.

        A running round counts in proportion to its steps: its exchange is part of its cost, whenever it takes place.
        None where the timeline has no data.
        """
        passed, rest = divmod(step, self.round_steps)
        numbers, sent_bytes = self._sent
        if not numbers or not numbers[0] <= passed <= numbers[-1] + 1 or (rest and passed > numbers[-1]):
            return None
        before, after = (sent_bytes[bisect_left(numbers, number)] for number in (passed, passed + 1))
        return (before + (after - before) * rest / self.round_steps) / self.n_clients / 1e6

    @cached_property
    def _first_clients(self) -> dict[int, ClientRound]:
        return first_of_each_round(self.rounds)

    @cached_property
    def _sent(self) -> tuple[list[int], list[int]]:
        """Numbers of the rounds, ascending, and the bytes sent by all clients before each round and in all rounds."""
        by_round: dict[int, int] = {}
        for one in self.rounds:
            by_round[one.round] = by_round.get(one.round, 0) + one.upload_bytes
        numbers = sorted(by_round)
        return numbers, list(accumulate((by_round[number] for number in numbers), initial=0))


def loss_figure(run: RunFiles, round_steps: int) -> Figure | None:
    """Every logged loss by round, by second and by byte, side by side; None if none was logged."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    losses = {name: points for name, points in run.metrics.items() if "loss" in name}
    if not losses:
        return None
    clock = Clock(run.rounds, round_steps, run.clients_told)
    axes: list[tuple[str, Any]] = [("rounds done", clock.round_of)]
    if run.rounds:
        axes += [("seconds", clock.seconds_of), ("MB sent by a client", clock.megabytes_of)]
    figure = make_subplots(rows=1, cols=len(axes), shared_yaxes=True, horizontal_spacing=0.03)
    for column, (title, place) in enumerate(axes, start=1):
        for index, (name, points) in enumerate(sorted(losses.items())):
            xs, ys = _placed(points, place)
            mode = "lines+markers" if len(points) < 60 else "lines"
            style = {"color": COLOURS[index % len(COLOURS)]}
            figure.add_trace(
                Scatter(x=xs, y=ys, mode=mode, name=name, legendgroup=name, showlegend=column == 1, line=style),
                row=1,
                col=column,
            )
        figure.update_xaxes(title_text=title, row=1, col=column)
    figure.update_yaxes(title_text=_loss_words(run), row=1, col=1)
    return laid_out(figure, height_px=380)


def _loss_words(run: RunFiles) -> str:
    """Axis title of losses: this package's language models log nats per token; units of other modules are not known."""
    model: Any = (run.manifest.get("configuration") or {}).get("model") or {}
    return "loss, nats per token" if str(model.get("class_path")).endswith(".CausalLM") else "loss"


def timeline_figure(
    rounds: Sequence[ClientRound], names: ClientNames = NO_NAMES, gaps: Sequence[Gap] = ()
) -> Figure | None:
    """A row of computation and a row of exchanges per client, one colour per block; waits are drawn on top.

    Args:
        rounds: Rounds of all clients.
        names: Names of the clients.
        gaps: Times in which clients of an elastic run were no members, drawn behind their rows.
    """
    from plotly.graph_objects import Bar, Figure

    if not rounds:
        return None
    rows = {client: names.label(client) for client in sorted({one.client for one in (*rounds, *gaps)})}
    figure = Figure()
    if gaps:
        figure.add_trace(gap_bars(Bar, gaps, lambda client: (rows[client], f"{rows[client]} exchange")))
    submitted, *waits = _waits(rounds, rows)
    _add_waits(figure, *submitted)  # first, and so below: the previous exchange may still be running
    colours = block_colours(one.block for one in rounds)
    for block, colour in colours.items():
        mine = [one for one in rounds if one.block == block]
        bars = [(rows[one.client], one.start_s, one.compute_s, one) for one in mine]
        bars += [(f"{rows[one.client]} exchange", one.exchange_ready_s, one.exchange_s, one) for one in mine]
        figure.add_trace(_bars(Bar, block, bars, color=colour).update(showlegend=block in legend_blocks(colours)))
    for wait in waits:
        _add_waits(figure, *wait, pattern_shape="/")
    order = [f"{row}{part}" for row in rows.values() for part in ("", " exchange")]
    figure.update_layout(barmode="overlay", bargap=0.15, xaxis_title="seconds since the first round began")
    figure.update_yaxes(categoryorder="array", categoryarray=order[::-1])
    rows_px = _ROW_PX * max(4, len(order))
    figure.update_xaxes(rangeslider={"visible": True, "thickness": _SLIDER_PX / rows_px})
    return laid_out(figure, height_px=rows_px + _SLIDER_PX + 155)


def timeline_note(rounds: Sequence[ClientRound]) -> str:
    """Note on what the timeline omits; empty if it shows everything."""
    return left_out((span[1] for one in rounds for span in (one.exposed, one.waiting)), SHORTEST_WAIT_S)


def hidden_figure(rounds: Sequence[ClientRound]) -> Figure | None:
    """Seconds of each round's exchange: hidden behind local steps, and exposed; means over the clients."""
    from plotly.graph_objects import Bar, Figure

    if not any(one.exchange_s for one in rounds):
        return None
    numbers = sorted({one.round for one in rounds})
    by_round = [[one for one in rounds if one.round == number] for number in numbers]
    exposed = [sum(one.exposed[1] for one in some) / len(some) for some in by_round]
    waiting = [sum(one.waiting[1] for one in some) / len(some) for some in by_round]
    whole = [sum(one.exchange_s for one in some) / len(some) for some in by_round]
    hidden = [max(0.0, all_s - lost_s) for all_s, lost_s in zip(whole, exposed, strict=True)]
    figure = Figure([
        Bar(name="hidden behind local steps", x=numbers, y=hidden, marker_color="#2ca02c"),
        Bar(name=STOOD_STILL, x=numbers, y=exposed, marker_color=EXPOSED_COLOUR),
        Bar(name=SLOWER, x=numbers, y=waiting, marker_color=SLOWER_COLOUR),
    ])  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title="round, counted from 0", yaxis_title="seconds")
    return laid_out(figure, height_px=300)


_Bar = tuple[str, float, float, ClientRound]
"""A bar's row, start and length in seconds, and round."""


def _waits(rounds: Sequence[ClientRound], rows: dict[int, str]) -> list[tuple[str, str, list[_Bar]]]:
    """Name, colour and visible bars of each kind of wait."""
    found: list[tuple[str, str, list[_Bar]]] = [
        (SUBMITTED, SUBMITTED_COLOUR, [
            (f"{rows[one.client]} exchange", one.exchange_start_s, one.exchange_ready_s - one.exchange_start_s, one)
            for one in rounds
        ]),
        (STOOD_STILL, EXPOSED_COLOUR, [(rows[one.client], *one.exposed, one) for one in rounds]),
        (SLOWER, SLOWER_COLOUR, [(rows[one.client], *one.waiting, one) for one in rounds]),
    ]  # fmt: skip
    return [(name, colour, [bar for bar in bars if bar[2] >= SHORTEST_WAIT_S]) for name, colour, bars in found]


def _add_waits(figure: Figure, name: str, colour: str, bars: Sequence[_Bar], **marker: Any) -> None:
    from plotly.graph_objects import Bar

    if bars:
        figure.add_trace(_bars(Bar, name, bars, color=colour, **marker).update(legendrank=2000))  # after the blocks


def _bars(kind: Any, name: str, bars: Sequence[_Bar], color: str, **marker: Any) -> Any:
    # A bar too short to be visible is drawn as a line of its colour; a white edge would hide it.
    edges = [color if length_s < SHORTEST_WAIT_S else "white" for _, _, length_s, _ in bars]
    said = [
        f"{name}, round {one.round}, {row}<br>{start_s:.2f} s, for {length_s:.3f} s"
        for row, start_s, length_s, one in bars
    ]
    return kind(
        name=name,
        orientation="h",
        y=[row for row, *_ in bars],
        base=[start_s for _, start_s, _, _ in bars],
        x=[length_s for _, _, length_s, _ in bars],
        hovertext=said,
        hoverinfo="text",
        marker={"line": {"width": 0.5, "color": edges}, "color": color, **marker},
    )


def gap_bars(kind: Any, gaps: Sequence[Gap], rows: Callable[[int], Sequence[str]]) -> Any:
    """Hatched bars for times in which clients were no members.

    Args:
        kind: plotly's ``Bar``.
        gaps: The times.
        rows: Names of the rows of a client.
    """
    bars = [(row, gap) for gap in gaps for row in rows(gap.client)]
    return kind(
        name=NO_MEMBER,
        orientation="h",
        y=[row for row, _ in bars],
        base=[gap.start_s for _, gap in bars],
        x=[gap.length_s for _, gap in bars],
        hovertext=[f"{row}: {gap.why}<br>{gap.start_s:.1f} s, for {gap.length_s:.1f} s" for row, gap in bars],
        hoverinfo="text",
        legendrank=3000,
        marker={"color": GAP_COLOUR, "line": {"width": 0.5, "color": "#b0a0a0"}, "pattern": {"shape": "x"}},
    )


def _placed(points: Sequence[Point], place: Any) -> tuple[list[float], list[float]]:
    found = [(place(point.step), point.value) for point in points]
    known = [(x, y) for x, y in found if x is not None]
    return [x for x, _ in known], [y for _, y in known]


def laid_out(figure: Figure, height_px: int) -> Figure:
    """The figure with the given height and the style of all figures on the page."""
    figure.update_layout(
        height=height_px,
        template="plotly_white",
        margin=_MARGINS_PX,
        modebar={"orientation": "v"},  # in the right margin: above the figure it would cover the legend
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif"},
    )
    return figure
