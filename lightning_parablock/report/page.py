"""One self-contained HTML page of a run: losses, timeline, hidden share, clients, settings; opens without a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning_parablock.report.page_figures import hidden_figure, loss_figure, timeline_figure
from lightning_parablock.report.run_files import ClientRound, RunFiles
from lightning_parablock.report.summary import readable_bytes

PAGE_NAME = "report.html"
_SHOWN = {"displaylogo": False, "responsive": True}
Row = tuple[str, ...]


def write_page(run: RunFiles, path: Path) -> None:
    """Write the page; it carries its scripts along."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("lightning_parablock.report", "."), autoescape=select_autoescape())
    figures = {
        "Loss": loss_figure(run, _local_steps(run.manifest)),
        "Timeline": timeline_figure(run.rounds),
        "Exchange of each round": hidden_figure(run.rounds),
    }
    html = environment.get_template("page.html").render(
        name=run.folder.resolve().name,
        state=run.manifest.get("state", "unknown"),
        facts=facts(run),
        figures={
            title: figure.to_html(
                full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True}
            )
            for title, figure in figures.items()
            if figure is not None
        },
        missing=[title for title, figure in figures.items() if figure is None],
        client_heads=CLIENT_HEADS,
        clients=client_rows(run),
        settings=sorted(((run.manifest.get("strategy") or {}).get("settings") or {}).items()),
        versions=sorted((run.manifest.get("versions") or {}).items()),
        plotly=get_plotlyjs(),
    )
    path.write_text(html, encoding="utf-8")


CLIENT_HEADS: Row = (
    "client",
    "host",
    "training examples",
    "rounds",
    "computed",
    "stood still for the exchange",
    "stood still for a slower client",
    "exchange hidden",
    "sent",
    "received",
)


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """What stands at the top of the page, as (name, value)."""
    manifest, result = run.manifest, run.manifest.get("result") or {}
    found: list[tuple[str, str | None]] = [
        ("started", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("command", " ".join(manifest.get("command") or ())),
        ("commit", manifest.get("git_sha")),
        ("clients", _text(manifest.get("clients"))),
        ("rounds", _text(result.get("rounds"))),
        ("training", f"{result['fit_s']:.0f} s" if "fit_s" in result else None),
        ("exchange hidden", _percent(result.get("hidden_share"))),
    ]
    before, after = result.get("loss_before") or {}, result.get("loss_after") or {}
    found += [
        (f"held-out {name}", (f"{before[name]:.4f} before, " if name in before else "") + f"{value:.4f} after")
        for name, value in after.items()
    ]
    return [(name, value) for name, value in found if value]


def client_rows(run: RunFiles) -> list[Row]:
    """One row a client, under :data:`CLIENT_HEADS`."""
    hosts: Sequence[str] = run.manifest.get("hosts") or ()
    data: Sequence[Mapping[str, Any] | None] = run.manifest.get("data") or ()
    clients = sorted({one.client for one in run.rounds} | set(range(len(hosts))))
    return [
        _client_row(
            client,
            hosts[client] if client < len(hosts) else "",
            data[client] if client < len(data) else None,
            [one for one in run.rounds if one.client == client],
        )
        for client in clients
    ]


def _client_row(client: int, host: str, data: Mapping[str, Any] | None, rounds: Sequence[ClientRound]) -> Row:
    examples = ((data or {}).get("train") or {}).get("examples")
    exchange_s = sum(one.exchange_s - one.waiting[1] for one in rounds)
    exposed_s = sum(one.exposed[1] for one in rounds)
    return (
        str(client),
        host,
        _text(examples),
        str(len(rounds)),
        f"{sum(one.compute_s for one in rounds):.1f} s",
        f"{exposed_s:.1f} s",
        f"{sum(one.waiting[1] for one in rounds):.1f} s",
        _percent(max(0.0, 1 - exposed_s / exchange_s)) if exchange_s > 0 else "",
        readable_bytes(sum(one.upload_bytes for one in rounds)),
        readable_bytes(sum(one.download_bytes for one in rounds)),
    )


def _local_steps(manifest: Mapping[str, Any]) -> int:
    settings = (manifest.get("strategy") or {}).get("settings") or {}
    found = str(settings.get("local_steps", "1"))
    return int(found) if found.isdigit() else 1


def _text(value: Any) -> str:
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"
