"""The table of peers as Markdown, for the terminal and the documentation."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from benchmarks.peers.methods import LINKS

GIGA = 1e9
Row = Mapping[str, Any]


def markdown(rows: Iterable[Row]) -> str:
    """Two tables: results of training, and seconds to the target on each link with both factors."""
    rows = list(rows)
    trained = _table(
        ("", "learning rate", "final loss", "sent, GB", "rounds to the target", "GB to it"), _trained, rows
    )
    timed = _table(("", *(f"{link}: s per round x rounds = s" for link in LINKS)), _timed, rows)
    return f"{trained}\n\n{timed}"


def _table(head: Iterable[str], cells: Any, rows: Iterable[Row]) -> str:
    lines = [list(head), *([str(cell) for cell in cells(row)] for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _trained(row: Row) -> tuple[str, ...]:
    reached = row["rounds_to_target"] is not None
    return (
        row["title"],
        f"{row['learning_rate']:g}",
        f"{row['final_loss']:.4f}",
        f"{row['sent_bytes'] / GIGA:.2f}",
        f"{row['rounds_to_target']} of {row['steps_a_round']} steps" if reached else "not reached",
        f"{row['bytes_to_target'] / GIGA:.2f}" if reached else "",
    )


def _timed(row: Row) -> tuple[str, ...]:
    return (row["title"], *(_product(row, link) for link in LINKS))


def _product(row: Row, link: str) -> str:
    seconds = row["round_s"].get(link)
    if seconds is None:
        return "not timed"
    if link not in row["seconds_to_target"]:
        return f"{seconds:.1f}"
    return f"{seconds:.1f} x {row['rounds_to_target']} = {row['seconds_to_target'][link]:.0f}"
