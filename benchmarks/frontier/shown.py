"""The frontier as Markdown, for the terminal and for docs/results.md: three tables, and when to take which method.

Every sentence is made from the table; what has not been run is named.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from benchmarks.frontier.choice import Cell, Row, best_of, front, overlap
from benchmarks.frontier.figures import MINUTES, RATES_MBIT

GIGA, MEGA = 1e9, 1e6
MEMORY = (
    "Peaks are of the whole process, above what it had before the model was loaded: with the server's half of the "
    "model, and what a codec keeps for error feedback, 4 bytes per parameter and more, which are in host memory where "
    "there is a GPU."
)
TITLES = {"gsm8k": "GSM8K", "instruct": "instruction set"}
CELLS = [Cell(f"{rate}mbit", str(minutes)) for rate in RATES_MBIT for minutes in MINUTES]


def markdown(values: Mapping[str, Any]) -> str:
    """Tables and sentences for the values of ``results/frontier.json``."""
    rows: Sequence[Row] = values["table"]
    parts = [
        _table(("", *_TRAINED), map(_trained, rows)),
        _table(("", *_REACHED), map(_reached, rows)),
        _table(("", *_TO_TARGET), map(_to_target, rows)),
    ]
    sentences = [*_choices(rows), *_full_against_adapters(rows), *_fastest(rows), *_cautions(rows)]
    sentences += _missing(values["missing"])
    return "\n\n".join([*parts, "\n".join(f"- {sentence}" for sentence in sentences)])


# --- tables -----------------------------------------------------------------------------------------------------------

_TRAINED = (
    "learning rate (loss of each in the search)", "final loss, mean", "by seed", "peak, MB", "sent per client, GB",
    "MB per round", "steps per round", "seconds per step",
)  # fmt: skip
_REACHED = tuple(
    heading
    for rate in RATES_MBIT
    for heading in (
        *(f"{rate} Mbit/s: {minutes} min" for minutes in MINUTES),
        f"{rate} Mbit/s: all steps, min",
    )
)
_TO_TARGET = ("loss that all reach", "rounds to it", *(f"{rate} Mbit/s: minutes to it" for rate in RATES_MBIT))


def _table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    lines = [list(head), *(list(row) for row in rows)]
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _named(row: Row) -> str:
    return row["title"] if row["data"] == "gsm8k" else f"{TITLES[row['data']]}: {row['title']}"


def _trained(row: Row) -> tuple[str, ...]:
    tried = ", ".join(f"{rate}: {loss:.4f}" for rate, loss in row["final_loss_by_learning_rate"].items())
    return (
        _named(row),
        f"{row['learning_rate']:g}" + (f" ({tried})" if tried else ""),
        f"{row['mean_final_loss']:.4f}",
        ", ".join(f"{loss:.4f}" for loss in row["final_losses"]),
        f"{row['peak_bytes'] / MEGA:,.0f}",
        f"{row['sent_bytes'] / GIGA:.2f}",
        f"{row['round_bytes'] / MEGA:.1f}",
        f"{row['local_steps']}",
        f"{row['step_s']:.2f}",
    )


def _reached(row: Row) -> list[str]:
    """A loss with * had no step left: the run was over by then."""
    cells = [_named(row)]
    for rate in RATES_MBIT:
        link = row["links"][f"{rate}mbit"]
        of_minutes = (link["reached"][str(minutes)] for minutes in MINUTES)
        cells += [f"{one['mean_loss']:.4f}{'*' * one['has_ended']}" for one in of_minutes]
        cells.append(f"{link['whole_run_s'] / 60:.1f}")
    return cells


def _to_target(row: Row) -> list[str]:
    found = [row["links"][f"{rate}mbit"]["to_target"] for rate in RATES_MBIT]
    rounds = ", ".join(map(str, found[0]["rounds"])) if found[0] else ""
    minutes = [f"{one['minutes']:.1f}" if one else "not by every seed" for one in found]
    return [_named(row), f"{row['target_loss']:.4f}", rounds, *minutes]


# --- sentences --------------------------------------------------------------------------------------------------------


def _choices(rows: Sequence[Row]) -> Iterable[str]:
    """For each rate and time: the least memory, and what more memory buys."""
    on_gsm8k = [row for row in rows if row["data"] == "gsm8k"]
    for cell in CELLS if on_gsm8k else ():
        least, *more = front(on_gsm8k, cell)
        said = f"**{_place(cell)}**: with the least memory {_with_loss(least, cell)}"
        before = least
        for row in more:
            said += f"; for more, {_with_loss(row, cell)}{_doubt(before, row, cell)}"
            before = row
        yield said + ("." if more else "; no method with more memory reaches less.")


def _full_against_adapters(rows: Sequence[Row]) -> Iterable[str]:
    """For each data set and rate: the best method that trains the model against the best over adapters, over time."""
    for data, title in TITLES.items():
        of_data = [row for row in rows if row["data"] == data]
        for rate in RATES_MBIT:
            said = [_comparison(of_data, cell) for cell in CELLS if cell.link == f"{rate}mbit"]
            if all(said):
                yield f"**{title}, {rate} Mbit/s, the model itself against adapters**: {'; '.join(said)}."


def _comparison(rows: Sequence[Row], cell: Cell) -> str:
    model, adapters = best_of(rows, "model", cell), best_of(rows, "adapters", cell)
    if model is None or adapters is None:
        return ""
    over = 100 * (cell.loss(model) / cell.loss(adapters) - 1)
    doubt = _doubt(model, adapters, cell)
    return f"{cell.minutes} min, {model['title']} {over:+.1f} % against {adapters['title']}{doubt}"


def _fastest(rows: Sequence[Row]) -> Iterable[str]:
    """For each data set and rate: the methods in the order in which they reach the loss that all of them reach."""
    for data, title in TITLES.items():
        of_data = [row for row in rows if row["data"] == data]
        for rate in RATES_MBIT:
            found = [(row["links"][f"{rate}mbit"]["to_target"], row["title"]) for row in of_data]
            order = sorted((one["minutes"], name) for one, name in found if one)
            if len(order) > 1:
                said = ", ".join(f"{name} {minutes:.1f}" for minutes, name in order)
                yield f"**{title}, {rate} Mbit/s, minutes to {of_data[0]['target_loss']:.4f}**: {said}."


def _cautions(rows: Sequence[Row]) -> Iterable[str]:
    if rows:
        yield MEMORY
        yield (
            "Seconds are those of a machine on which a plain step, forward and backward through the whole model, "
            f"takes {rows[0]['plain_step_s']:.2f} s."
        )
    edges = [_named(row) for row in rows if row["rate_at_edge"] and row["data"] == "gsm8k"]
    if edges:
        yield f"The best learning rate is the smallest or largest of those tried for: {'; '.join(edges)}."
    single = [_named(row) for row in rows if len(row["seeds"]) == 1]
    if single:
        yield f"One seed only: {'; '.join(single)}."
    if any(cell.of(row)["has_ended"] for row in rows for cell in CELLS):
        yield "A loss with * is the final one of a run that was over by then; more steps might have reached less."


def _missing(left: Mapping[str, str]) -> Iterable[str]:
    if left:
        yield f"Not made yet: {'; '.join(f'{title}: {what}' for title, what in left.items())}."


def _place(cell: Cell) -> str:
    return f"{cell.link.removesuffix('mbit')} Mbit/s, {cell.minutes} minutes"


def _with_loss(row: Row, cell: Cell) -> str:
    return f"{row['title']} ({row['peak_bytes'] / GIGA:.1f} GB) reaches {cell.loss(row):.4f}"


def _doubt(first: Row, second: Row, cell: Cell) -> str:
    """Why the order of two rows may be chance; empty if no seed of one is within the range of the other's."""
    losses = [cell.of(row)["losses"] for row in (first, second)]
    if min(map(len, losses)) == 1:
        return ", from one seed"
    return ", within the spread of the seeds" if overlap(*losses) else ""
