"""One row of a source, and the checks that a row's columns are what the options say they are."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_parablock.checks import closest
from lightning_parablock.errors import DataError

_SHOWN = 12


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a source.

    Args:
        values: Column name to value.
        file: Where the row comes from: a path, a hub id, or a module's file name.
        place: Line number in ``file``, from 1, for JSON Lines; row number, from 1, for a hub data set.
    """

    values: Mapping[str, Any]
    file: str
    place: int

    @property
    def where(self) -> str:
        """The row's origin for messages, such as ``train.jsonl, line 3``."""
        return f"{self.file}, line {self.place}"


def text_of(row: Row, column: str) -> str:
    """The text in ``column`` of ``row``.

    Raises:
        DataError: the column is not there, or holds something that is not text.
    """
    if column not in row.values:
        raise DataError(f"{row.where}: no column {column!r}; {suggest(column, list(row.values), 'columns')}")
    value = row.values[column]
    if not isinstance(value, str):
        raise DataError(f"{row.where}: column {column!r} must hold text, found {type(value).__name__}: {value!r:.80}")
    return value


def label_of(row: Row, column: str) -> str:
    """The label in ``column`` of ``row`` as text; whole numbers and booleans are labels too.

    Raises:
        DataError: the column is not there, or its value is neither text, a whole number nor a boolean.
    """
    if column not in row.values:
        raise DataError(
            f"{row.where}: no label column {column!r}; {suggest(column, list(row.values), 'columns')}; "
            "set label_field to one of them"
        )
    value = row.values[column]
    if not isinstance(value, (str, int)):
        raise DataError(f"{row.where}: label column {column!r} holds {type(value).__name__} {value!r:.80}, no label")
    return str(value)


def labels_if_any(rows: Sequence[Row], column: str | None) -> list[str] | None:
    """The label of every row; None where there is no such column, or a row is without it."""
    if column is None or any(column not in row.values for row in rows):
        return None
    return [label_of(row, column) for row in rows]


def require_columns(rows: Sequence[Row], columns: Iterable[str], source: str) -> None:
    """Check that every row has every one of ``columns``; the message names the columns there are.

    Raises:
        DataError: a column is missing, naming the first row without it.
    """
    wanted = tuple(columns)
    for row in rows:
        for column in wanted:
            if column not in row.values:
                raise DataError(
                    f"source {source}: {row.where} has no column {column!r}; "
                    f"{suggest(column, list(row.values), 'columns')}"
                )


def suggest(word: str, choices: Sequence[str], what: str) -> str:
    """The end of a message: the choices there are (a dozen of them at most) and the likely intention."""
    if not choices:
        return f"there are no {what}"
    close = closest(word, choices, cutoff=0.6)
    hint = f"; did you mean {close!r}?" if close else ""
    more = f" and {len(choices) - _SHOWN} more" if len(choices) > _SHOWN else ""
    return f"{what} there are: {', '.join(choices[:_SHOWN])}{more}{hint}"
