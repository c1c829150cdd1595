"""Clients and labels on the report page: two tables, and figures over the rounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lightning_parablock.callbacks.palette import COLOURS
from lightning_parablock.callbacks.sight_figures import DRIFT, LABEL, LOSS
from lightning_parablock.report.page_figures import laid_out
from lightning_parablock.runs.files import ClientRound, Point, RunFiles
from lightning_parablock.system.units import readable_bytes, readable_number, readable_s

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

Row = tuple[str, ...]
CLIENT_HEADS: Row = (
    "client",
    "host",
    "training examples",
    "rounds",
    "trained in",
    "samples",
    "own validation loss",
    "drift",
    "computed",
    "stood still for the exchange",
    "stood still for a slower client",
    "exchange hidden",
    "sent",
    "received",
)
LABEL_HEADS: Row = ("label", "first", "last")
_PANEL_PX = 300


def client_rows(run: RunFiles) -> list[Row]:
    """One row per client, under :data:`CLIENT_HEADS`; only the first client's where clients share nothing."""
    homes = _homes(run)
    losses = {client: points[-1].value for client, points in _by_client(run, LOSS).items()}
    sites = run.names.clients if run.membership else ()
    rounds: dict[int, list[ClientRound]] = {client: [] for client in sorted({*homes, *losses, *sites, *_trained(run)})}
    for one in run.rounds:
        rounds[one.client].append(one)
    has_all = bool(run.rounds) and not run.membership  # so that a client without rounds had none
    return [
        (
            run.names.label(client).removeprefix("client "),  # the table's head has the word
            *homes.get(client, ("", "")),
            *(_took_part(some) if some or has_all else ("",) * 3),
            _loss_text(losses.get(client), losses),
            *(_spent(some) if some or has_all else ("",) * 7),
        )
        for client, some in rounds.items()
    ]


def _trained(run: RunFiles) -> set[int]:
    return {one.client for one in run.rounds}


def why_no_rounds(run: RunFiles) -> str:
    """Reason for cells without rounds, times and bytes; an empty string if there are none."""
    if not run.rounds:
        return "No rounds, times and bytes: they are written at the end of a run, and this one has not reached it."
    if run.membership and not _trained(run).issuperset(run.names.clients):
        return "No rounds, times and bytes of a site that was not in at the end: no other site knows them."
    return ""


def _homes(run: RunFiles) -> dict[int, tuple[str, str]]:
    """Host and number of training examples by client, where the data module reports them."""
    hosts: Sequence[str] = run.manifest.get("hosts") or ()
    data: Sequence[Mapping[str, Any] | None] = run.manifest.get("data") or ()
    homes: dict[int, tuple[str, str]] = {}
    first = run.manifest.get("rank", 0) if len(hosts) == 1 else 0  # for a rank that knows only itself
    for rank, host in enumerate(hosts, start=first):
        told: Mapping[str, Any] = (data[rank - first] if rank - first < len(data) else None) or {}
        clients: Sequence[int] = told.get("clients_here") or [rank]
        train: Sequence[Mapping[str, Any]] = told.get("train") or [{}] * len(clients)
        homes |= {c: (host, as_text(facts.get("examples"))) for c, facts in zip(clients, train, strict=False)}
    return homes


def why_no_drift(run: RunFiles) -> str:
    """Reason for an empty drift column; an empty string if a client has a drift, or there are no rounds."""
    if not run.rounds or any(one.drift is not None for one in run.rounds):
        return ""
    settings: Mapping[str, Any] = (run.manifest.get("strategy") or {}).get("settings") or {}
    names = ("compression", "server_optimizer", "aggregation")
    compression, optimizer, aggregation = (str(settings.get(name, "")) for name in names)
    if aggregation.startswith("Secure"):
        why = "secure sums leave out a part of the deltas, so a commit also holds what earlier rounds left out"
    elif compression and not compression.startswith("NoCompression"):
        why = f"{compression} is lossy, so a commit also holds what earlier rounds left out"
    elif optimizer and not optimizer.startswith("ServerSGD"):
        why = f"a commit of {optimizer} also holds the momentum of earlier rounds"
    else:
        why = "the commits do not give the mean delta, as where parameters are not float32, or no client trained"
    return f"No drift, which compares a client's delta with the mean delta: {why}."


def label_rows(run: RunFiles) -> list[Row]:
    """One row per label, under :data:`LABEL_HEADS`: the mean loss of the first and the last validation."""
    found = _named(run, LABEL)
    return [
        (label, *(readable_number(point.value) for point in (points[0], points[-1]))) for label, points in found.items()
    ]


def clients_figure(run: RunFiles, round_steps: int) -> Figure | None:
    """Own losses, their spread, losses by label and drift, each by round; None if none of them is known."""
    from plotly.graph_objects import Scatter
    from plotly.subplots import make_subplots

    panels = [panel for panel in _panels(run, round_steps) if panel.lines]
    if not panels:
        return None
    n_rows = (len(panels) + 1) // 2
    titles = [panel.title for panel in panels]
    figure = make_subplots(
        rows=n_rows, cols=min(2, len(panels)), subplot_titles=titles, horizontal_spacing=0.06, vertical_spacing=0.2
    )
    shown: set[str] = set()
    for index, panel in enumerate(panels):
        row, column = index // 2 + 1, index % 2 + 1
        for line in panel.lines:
            style = {"color": line.colour, "dash": line.dash}
            marks = "lines+markers" if len(line.xs) < 60 else "lines"
            figure.add_trace(
                Scatter(x=line.xs, y=line.ys, name=line.name, mode=marks, line=style, legendgroup=line.name,
                        showlegend=line.name not in shown),
                row=row,
                col=column,
            )  # fmt: skip
            shown.add(line.name)
        figure.update_xaxes(title_text="rounds done", row=row, col=column)
    height_px = 120 + _PANEL_PX * n_rows
    # The legend is placed above the titles of the first row: at its position in laid_out it would cover them.
    return laid_out(figure, height_px).update_layout(margin={"t": 70}, legend={"y": 1 + 30 / (height_px - 120)})


@dataclass(frozen=True)
class _Line:
    name: str
    xs: list[float]
    ys: list[float]
    colour: str
    dash: str = "solid"


@dataclass(frozen=True)
class _Panel:
    title: str
    lines: list[_Line]


def _panels(run: RunFiles, round_steps: int) -> list[_Panel]:
    def line(name: str, points: Sequence[Point], colour: str, dash: str = "solid") -> _Line:
        return _Line(name, [point.step / round_steps for point in points], [p.value for p in points], colour, dash)

    def overall(prefix: str, *which: tuple[str, str, str]) -> list[_Line]:
        known = [(name, run.sight.get(f"{prefix}_{key}"), dash) for key, name, dash in which]
        return [line(name, points, "#222222", dash) for name, points, dash in known if points]

    def colour(index: int) -> str:
        return COLOURS[index % len(COLOURS)]

    own = [line(run.names.label(i), points, colour(i)) for i, points in _by_client(run, LOSS).items()]
    drifts = [
        _Line(run.names.label(i), [one.round + 1 for one in some], [one.drift or 0.0 for one in some], colour(i))
        for i, some in _drifts(run.rounds).items()
    ]
    n_clients, of_label = max(len(own), len(drifts)), _named(run, LABEL)
    labels = [line(name, points, colour(n_clients + i)) for i, (name, points) in enumerate(of_label.items())]
    means = overall(DRIFT, ("mean", "mean", "dot"), ("max", "highest", "dash")) if not _by_client(run, DRIFT) else []
    return [
        _Panel("own validation loss", [*own, *overall(LOSS, ("mean", "mean", "dot"), ("worst", "worst", "dash"))]),
        _Panel(
            "spread across clients",
            overall(LOSS, ("spread", "highest less lowest", "solid"), ("std", "standard deviation", "dashdot")),
        ),
        _Panel("validation loss by label", labels),
        _Panel("drift of each round", [*drifts, *means]),
    ]


def _drifts(rounds: Sequence[ClientRound]) -> dict[int, list[ClientRound]]:
    known = [one for one in rounds if one.drift is not None]
    return {client: [r for r in known if r.client == client] for client in sorted({one.client for one in known})}


def _named(run: RunFiles, prefix: str) -> dict[str, list[Point]]:
    return {name.removeprefix(prefix): points for name, points in run.sight.items() if name.startswith(prefix)}


def _by_client(run: RunFiles, prefix: str) -> dict[int, list[Point]]:
    logged = {client: run.sight.get(f"{prefix}_{run.names.key(client)}") for client in run.names.clients}
    return {client: points for client, points in logged.items() if points}


def _loss_text(loss: float | None, losses: Mapping[int, float]) -> str:
    if loss is None:
        return ""
    return readable_number(loss) + (", the worst" if len(losses) > 1 and loss == max(losses.values()) else "")


def _took_part(rounds: Sequence[ClientRound]) -> tuple[str, str, str]:
    known = [one.samples for one in rounds if one.samples is not None]
    return str(len(rounds)), as_text(sum(n > 0 for n in known) if known else None), as_text(sum(known) or None)


def _spent(rounds: Sequence[ClientRound]) -> Row:
    drifts = [one.drift for one in rounds if one.drift is not None]
    exchange_s = sum(one.exchange_s for one in rounds)
    exposed_s = sum(one.exposed[1] for one in rounds)
    return (
        readable_number(sum(drifts) / len(drifts), decimals=3) if drifts else "",
        readable_s(sum(one.compute_s for one in rounds)),
        readable_s(exposed_s),
        readable_s(sum(one.waiting[1] for one in rounds)),
        as_percent(max(0.0, 1 - exposed_s / exchange_s)) if exchange_s > 0 else "",
        readable_bytes(sum(one.upload_bytes for one in rounds)),
        readable_bytes(sum(one.download_bytes for one in rounds)),
    )


def as_text(value: Any) -> str:
    """Text of a manifest's value on the page; whole numbers have a comma every three digits."""
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def as_percent(share: float | None) -> str:
    """Text of a share, 0 to 1, in percent."""
    return "" if share is None else f"{100 * share:.1f} %"
