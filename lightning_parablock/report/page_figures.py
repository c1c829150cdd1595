"""The figures of the report page: losses by round, second and byte, a timeline to zoom into, and what was hidden."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from lightning_parablock.callbacks.picture import EXPOSED_COLOUR, natural
from lightning_parablock.records import first_of_each_round
from lightning_parablock.report.run_files import ClientRound, Point, RunFiles

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

WAITING_COLOUR = "#7f7f7f"
_ROW_PX = 34


@dataclass(frozen=True)
class Clock:
    """Where a run stood when so many optimizer steps had been made.

    Args:
        rounds: Of all clients.
        round_steps: Optimizer steps of a round on a rank: K for each turn.
        n_clients: Of how many clients these are.
    """

    rounds: Sequence[ClientRound]
    round_steps: int
    n_clients: int

    def round_of(self, step: int) -> float:
        """Rounds that had passed, with the part of the running one."""
        return step / self.round_steps

    def seconds_of(self, step: int) -> float | None:
        """Seconds since the first round began, on each round's first client; None where the timeline knows nothing."""
        first = self._first_clients
        passed, rest = divmod(step, self.round_steps)
        if passed in first:
            return first[passed].start_s + first[passed].compute_s * rest / self.round_steps
        if rest or passed - 1 not in first:  # not of this run, or of the part that was resumed
            return None
        last = first[passed - 1]
        return max(last.start_s + last.compute_s, last.exchange_end_s)

    def megabytes_of(self, step: int) -> float | None:
        """Sent by a client in the exchanges that were over by then, the mean over the clients."""
        now_s = self.seconds_of(step)
        if now_s is None:
            return None
        ends_s, sent_bytes = self._sent
        return sent_bytes[bisect_right(ends_s, now_s)] / self.n_clients / 1e6

    @cached_property
    def _first_clients(self) -> dict[int, ClientRound]:
        return first_of_each_round(self.rounds)

    @cached_property
    def _sent(self) -> tuple[list[float], list[int]]:
        """When exchanges ended, in order, and what all clients had sent in the first so many of them."""
        ended = sorted(self.rounds, key=lambda one: one.exchange_end_s)
        sent_bytes = list(accumulate((one.upload_bytes for one in ended), initial=0))
        return [one.exchange_end_s for one in ended], sent_bytes


def loss_figure(run: RunFiles, round_steps: int) -> Figure | None:
    """Every logged loss by round, by second and by byte, side by side; None where none was logged."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    losses = {name: points for name, points in run.metrics.items() if "loss" in name}
    if not losses:
        return None
    clock = Clock(run.rounds, round_steps, run.clients_told)
    axes: list[tuple[str, Any]] = [("rounds", clock.round_of)]
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
    figure.update_yaxes(title_text="loss, nats a token" if "val_loss" in losses else "loss", row=1, col=1)
    return laid_out(figure, height_px=380)


def timeline_figure(rounds: Sequence[ClientRound]) -> Figure | None:
    """A row of computation and one of exchanges a client, one colour a block; times of standing still lie above."""
    from plotly.graph_objects import Bar, Figure

    if not rounds:
        return None
    figure = Figure()
    blocks = sorted({one.block for one in rounds}, key=natural)
    for index, block in enumerate(blocks):
        mine = [one for one in rounds if one.block == block]
        bars = [(f"client {one.client}", one.start_s, one.compute_s, one) for one in mine]
        bars += [(f"client {one.client} exchange", one.exchange_start_s, one.exchange_s, one) for one in mine]
        figure.add_trace(_bars(Bar, block, bars, color=COLOURS[index % len(COLOURS)]))
    for name, colour, spans in (
        ("stood still for the exchange", EXPOSED_COLOUR, [(one, one.exposed) for one in rounds]),
        ("stood still for a slower client", WAITING_COLOUR, [(one, one.waiting) for one in rounds]),
    ):
        bars = [(f"client {one.client}", start_s, length_s, one) for one, (start_s, length_s) in spans if length_s > 0]
        if bars:
            figure.add_trace(_bars(Bar, name, bars, color=colour, pattern_shape="/"))
    clients = sorted({one.client for one in rounds})
    rows = [f"client {client}{part}" for client in clients for part in ("", " exchange")]
    figure.update_layout(barmode="overlay", bargap=0.15, xaxis_title="seconds since the first round began")
    figure.update_yaxes(categoryorder="array", categoryarray=rows[::-1])
    figure.update_xaxes(rangeslider={"visible": True, "thickness": 0.06})
    return laid_out(figure, height_px=220 + _ROW_PX * len(rows))


def hidden_figure(rounds: Sequence[ClientRound]) -> Figure | None:
    """Seconds of each round's exchange: hidden behind local steps, and stood still; means over the clients."""
    from plotly.graph_objects import Bar, Figure

    if not any(one.exchange_s for one in rounds):
        return None
    numbers = sorted({one.round for one in rounds})
    by_round = [[one for one in rounds if one.round == number] for number in numbers]
    exposed = [sum(one.exposed[1] for one in some) / len(some) for some in by_round]
    waiting = [sum(one.waiting[1] for one in some) / len(some) for some in by_round]
    whole = [sum(one.transfer_s for one in some) / len(some) for some in by_round]
    hidden = [max(0.0, all_s - lost_s) for all_s, lost_s in zip(whole, exposed, strict=True)]
    figure = Figure([
        Bar(name="hidden behind local steps", x=numbers, y=hidden, marker_color="#2ca02c"),
        Bar(name="stood still for the exchange", x=numbers, y=exposed, marker_color=EXPOSED_COLOUR),
        Bar(name="stood still for a slower client", x=numbers, y=waiting, marker_color=WAITING_COLOUR),
    ])  # fmt: skip
    figure.update_layout(barmode="stack", xaxis_title="round", yaxis_title="seconds")
    return laid_out(figure, height_px=300)


COLOURS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#9467bd", "#8c564b", "#e377c2", "#bcbd22", "#17becf", "#aec7e8",
            "#ffbb78", "#98df8a", "#c5b0d5", "#c49c94", "#f7b6d2", "#dbdb8d", "#9edae5")  # fmt: skip


def _bars(kind: Any, name: str, bars: Sequence[tuple[str, float, float, ClientRound]], **marker: Any) -> Any:
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
        marker={"line": {"width": 0.5, "color": "white"}, **marker},
    )


def _placed(points: Sequence[Point], place: Any) -> tuple[list[float], list[float]]:
    found = [(place(point.step), point.value) for point in points]
    known = [(x, y) for x, y in found if x is not None]
    return [x for x, _ in known], [y for _, y in known]


def laid_out(figure: Figure, height_px: int) -> Figure:
    """The figure with the height and looks that all of the page have."""
    figure.update_layout(
        height=height_px,
        template="plotly_white",
        margin={"l": 60, "r": 20, "t": 40, "b": 50},
        legend={"orientation": "h", "y": 1.02, "yanchor": "bottom"},
        font={"family": "system-ui, sans-serif"},
    )
    return figure
