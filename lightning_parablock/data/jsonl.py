"""Local JSON Lines: one JSON object a line; every line that is not one is named before any training."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from lightning_parablock.checks import closest
from lightning_parablock.data.rows import Row, suggest
from lightning_parablock.errors import DataError

SUFFIXES = (".jsonl", ".ndjson", ".json")
_LISTED_LINES = 5


def find_files(paths: Sequence[str]) -> list[Path]:
    """The files that ``paths`` name, in the order given; a folder stands for its ``*.jsonl`` files, sorted by name.

    Raises:
        DataError: a path does not exist, is named twice, or a folder holds no JSON Lines file.
    """
    files = [file for path in paths for file in _files_at(Path(path).expanduser())]
    seen: set[Path] = set()
    for file in files:
        if file.resolve() in seen:
            raise DataError(f"data file {file} is named twice in source; its rows would count twice")
        seen.add(file.resolve())
    return files


def read_files(files: Sequence[Path]) -> list[Row]:
    """All rows of ``files`` in order.

    Raises:
        DataError: a file cannot be read or is empty, or lines are no JSON objects (file and line numbers named).
    """
    return [row for file in files for row in read_file(file)]


def read_file(path: Path) -> list[Row]:
    """The rows of one file; blank lines are passed over and still count as lines."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"data file {path} cannot be read: {error.strerror or error}") from error
    rows: list[Row] = []
    broken: list[str] = []
    for number, line in enumerate(content.removeprefix(b"\xef\xbb\xbf").split(b"\n"), start=1):
        if not line.strip():
            continue
        try:
            rows.append(Row(_parse(line), str(path), number))
        except ValueError as error:
            broken.append(f"{path}, line {number}: {error}")
    if broken:
        raise DataError(_broken_message(broken))
    if not rows:
        raise DataError(f"data file {path} is empty: it has no row; each line must hold one JSON object")
    return rows


def _parse(line: bytes) -> dict[str, object]:
    try:
        value: object = json.loads(line.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 text (byte {error.start + 1} of the line)") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON: {error.msg} at column {error.colno}") from error
    except RecursionError as error:
        raise ValueError("JSON nested too deeply") from error
    if not isinstance(value, dict):
        raise ValueError(f"one JSON object a line is needed, found {type(value).__name__}")
    return value  # pyright: ignore[reportUnknownVariableType]  (a parsed object's keys are text)


def _broken_message(broken: Sequence[str]) -> str:
    rest = len(broken) - _LISTED_LINES
    more = f"; and {rest} more broken lines" if rest > 0 else ""
    return f"broken JSON Lines: {'; '.join(broken[:_LISTED_LINES])}{more}; repair or remove the line"


def _files_at(path: Path) -> list[Path]:
    if path.is_dir():
        files = sorted(file for file in path.iterdir() if file.suffix in (".jsonl", ".ndjson") and file.is_file())
        if not files:
            raise DataError(f"data folder {path} holds no .jsonl file; {_siblings(path / 'train.jsonl')}")
        return files
    if not path.exists():
        raise DataError(f"data file {path} does not exist; {_siblings(path)}")
    return [path]


def _siblings(path: Path) -> str:
    """What there is at the place of ``path``, or in the nearest folder above it that exists."""
    folder = path.parent
    while not folder.is_dir():
        path, folder = folder, folder.parent
    names = sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith("."))
    close = closest(path.name, names, cutoff=0.6)
    return f"did you mean {folder / close}?" if close else f"in {folder}: {suggest(path.name, names, 'files')}"
