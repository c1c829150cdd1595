"""The table of a comparison: on the screen, as Markdown and as CSV; and the raw numbers as JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from lightning_parablock.comparing.outcomes import FIGURES, MethodRow, Outcome, Spread
from lightning_parablock.runs.manifest import write_atomically
from lightning_parablock.system.units import readable_number

NAME = "compare"
HEADS = {
    "loss_before": "held-out loss before",
    "loss_after": "after",
    "samples": "samples per client",
    "seconds": "training s",
    "sent_mb": "MB sent per client",
    "rounds": "rounds",
    "hidden_share": "exchange hidden",
}
"""The columns of figures."""

_FORMATS = {"seconds": ",.1f", "sent_mb": ",.2f", "hidden_share": ".0%"}


def write_tables(out: Path, what: str, outcomes: Sequence[Outcome], rows: Sequence[MethodRow]) -> None:
    """Write ``compare.md``, ``compare.csv`` and ``compare.json``, each whole or not at all."""
    write_atomically(out / f"{NAME}.md", markdown(what, rows))
    write_atomically(out / f"{NAME}.csv", csv_text(rows))
    raw = {"compared_at": what, "runs": [one.as_dict() for one in outcomes]}
    write_atomically(out / f"{NAME}.json", json.dumps(raw, indent=2) + "\n")


def markdown(what: str, rows: Sequence[MethodRow]) -> str:
    """The table as Markdown, with its picture below."""
    heads = _heads(rows)
    lines = [
        " | ".join(heads),
        " | ".join("---" for _ in heads),
        *(" | ".join(_escaped(_cells(row, rows))) for row in rows),
    ]
    table = "\n".join(f"| {line} |" for line in lines)
    seeds = "Mean and standard deviation over the seeds. " if any(len(row.seeds) > 1 for row in rows) else ""
    return f"# Methods at {what}\n\n{table}\n\n{seeds}Raw numbers: {NAME}.json.\n\n![held-out loss]({NAME}.png)\n"


def csv_text(rows: Sequence[MethodRow]) -> str:
    """The table as CSV: plain numbers, mean and standard deviation in columns of their own."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["method", "seeds", *(f"{name}_{part}" for name in FIGURES for part in ("mean", "sd")), "error"])
    for row in rows:
        cells = [cell for name in FIGURES for cell in _plain(row.spreads[name])]
        writer.writerow([row.method, " ".join(map(str, row.seeds)), *cells, "; ".join(row.errors)])
    return text.getvalue()


def screen_table(what: str, rows: Sequence[MethodRow]) -> Table:
    """The table for a terminal."""
    table = Table(title=f"methods at {what}", title_justify="left", title_style="", box=box.SIMPLE_HEAD)
    for index, head in enumerate(_heads(rows)):
        table.add_column(head, justify="left" if index == 0 or head == "error" else "right", overflow="fold")
    for row in rows:
        table.add_row(*_cells(row, rows))
    return table


def readable(name: str, spread: Spread | None) -> str:
    """A figure of the table: "2.3456 ± 0.0012"; empty where it is not known."""
    if spread is None:
        return ""
    if name not in ("loss_before", "loss_after"):
        return f"{spread.mean:{_FORMATS.get(name, ',.0f')}}"
    deviation = "" if spread.deviation is None else f" ± {readable_number(spread.deviation)}"
    return readable_number(spread.mean) + deviation


def _heads(rows: Sequence[MethodRow]) -> list[str]:
    return ["method", "seeds", *HEADS.values(), *(["error"] if _has_errors(rows) else [])]


def _cells(row: MethodRow, rows: Sequence[MethodRow]) -> list[str]:
    errors = ["; ".join(row.errors)] if _has_errors(rows) else []
    seeds = ", ".join(map(str, row.seeds))
    return [row.method, seeds, *(readable(name, row.spreads[name]) for name in HEADS), *errors]


def _has_errors(rows: Sequence[MethodRow]) -> bool:
    return any(row.errors for row in rows)


def _escaped(cells: Sequence[str]) -> list[str]:
    return [cell.replace("|", "\\|") for cell in cells]


def _plain(spread: Spread | None) -> tuple[Any, Any]:
    return ("", "") if spread is None else (spread.mean, "" if spread.deviation is None else spread.deviation)
