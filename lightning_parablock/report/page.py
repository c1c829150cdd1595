"""Self-contained HTML page of a run: losses, timeline, hidden share, clients, settings; needs no network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_parablock.report.page_clients import (
    CLIENT_HEADS,
    LABEL_HEADS,
    as_percent,
    as_text,
    client_rows,
    clients_figure,
    label_rows,
    why_no_drift,
    why_no_rounds,
)
from lightning_parablock.report.page_figures import hidden_figure, loss_figure, timeline_figure, timeline_note
from lightning_parablock.report.page_membership import (
    MEMBERSHIP_HEADS,
    membership_figure,
    membership_note,
    membership_rows,
)
from lightning_parablock.report.summary import before_and_after, held_out_words
from lightning_parablock.runs.files import RunFiles
from lightning_parablock.runs.round_steps import round_steps

PAGE_NAME = "report.html"
LOSS_NOTE = (
    "MB sent: the exchange of a round counts in proportion to the steps made of the round, whenever it took place."
)
EXCHANGE_NOTE = (
    "Means over the clients. An exchange lasts from the moment every client has submitted its delta until the \
commit is there; exposed seconds are those of it in which a client stood still."
)


def write_page(run: RunFiles, path: Path) -> None:
    """Write the page, with its scripts embedded."""
    from jinja2 import Environment, PackageLoader, select_autoescape
    from plotly.offline import get_plotlyjs

    environment = Environment(loader=PackageLoader("lightning_parablock.report", "."), autoescape=select_autoescape())
    figures = {
        "Loss": loss_figure(run, round_steps(run)),
        "Timeline": timeline_figure(run.rounds, run.names, run.gaps),
        "Exchange of each round": hidden_figure(run.rounds),
    }
    by_client, members = clients_figure(run, round_steps(run)), membership_figure(run)
    html = environment.get_template("page.html").render(
        name=_title(run),
        state=run.manifest.get("state", "unknown"),
        facts=facts(run),
        figures={title: _html(figure) for title, figure in figures.items() if figure is not None},
        notes={"Loss": LOSS_NOTE, "Timeline": timeline_note(run.rounds), "Exchange of each round": EXCHANGE_NOTE},
        membership=membership_rows(run),
        membership_heads=MEMBERSHIP_HEADS,
        membership_figure=_html(members) if members is not None else "",
        membership_note=membership_note(run),
        missing=[title for title, figure in figures.items() if figure is None],
        client_heads=CLIENT_HEADS,
        clients=client_rows(run),
        client_notes=[note for note in (why_no_rounds(run), why_no_drift(run)) if note],
        by_client=_html(by_client) if by_client is not None else "",
        label_heads=LABEL_HEADS,
        labels=label_rows(run),
        settings=sorted(((run.manifest.get("strategy") or {}).get("settings") or {}).items()),
        versions=sorted((run.manifest.get("versions") or {}).items()),
        plotly=get_plotlyjs(),
    )
    path.write_text(html, encoding="utf-8")


def _title(run: RunFiles) -> str:
    """Name of the run's folder; for a site's own folder, the name of its parent."""
    folder, site = run.folder.resolve(), run.manifest.get("site")
    run_name = folder.parent.name if folder.name == site else folder.name
    return run_name if site is None else f"{run_name}, site {site}"


def _html(figure: Any) -> str:
    return figure.to_html(full_html=False, include_plotlyjs=False, config={"displaylogo": False, "responsive": True})


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """Facts at the top of the page, as (name, value)."""
    manifest, result = run.manifest, run.manifest.get("result") or {}
    found: list[tuple[str, str | None]] = [
        ("started", manifest.get("started")),
        ("ended", manifest.get("ended")),
        ("command", " ".join(manifest.get("command") or ())),
        ("commit", manifest.get("git_sha")),
        ("clients", as_text(manifest.get("clients"))),
        ("sites", ", ".join(run.names.sites)),
        ("site of this folder", manifest.get("site")),
        ("rounds", as_text(result.get("rounds"))),
        ("training", f"{result['fit_s']:.0f} s" if "fit_s" in result else None),
        ("exchange hidden", as_percent(result.get("hidden_share"))),
    ]
    before, after = result.get("loss_before") or {}, result.get("loss_after") or {}
    found += [(f"held-out {held_out_words(name)}", before_and_after(before.get(name), v)) for name, v in after.items()]
    return [(name, value) for name, value in found if value]
