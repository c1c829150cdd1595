"""Where rows come from: a hub data set, local JSON Lines files, or the Python standard library."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from lightning_parablock.checks import closest
from lightning_parablock.data.jsonl import SUFFIXES, find_files, read_files
from lightning_parablock.data.rows import Row
from lightning_parablock.data.stdlib import read_stdlib
from lightning_parablock.errors import DataError

STDLIB = "python-stdlib"


@dataclass(frozen=True, slots=True)
class Source:
    """One data source as the options name it.

    Args:
        name: ``python-stdlib``, a hub id, or the paths of local JSON Lines files or folders.
        config_name: Configuration of a hub data set, where it has several.
        split: Split of a hub data set.
    """

    name: str | tuple[str, ...]
    config_name: str | None = None
    split: str = "train"

    @property
    def title(self) -> str:
        """The source as one piece of text, for messages and manifests."""
        return self.name if isinstance(self.name, str) else ", ".join(self.name)

    @property
    def kind(self) -> str:
        """``stdlib``, ``files`` or ``hub``."""
        if not isinstance(self.name, str):
            return "files"
        if self.name == STDLIB:
            return "stdlib"
        return "files" if looks_local(self.name) else "hub"

    def same_rows(self, other: Source) -> bool:
        """Whether both name the same rows; configuration and split mean nothing off the hub."""
        return self == other if self.kind == "hub" else self.name == other.name


def looks_local(name: str) -> bool:
    """Whether ``name`` is a path rather than a hub id: it exists, has a JSON Lines suffix, or starts like a path."""
    return name.endswith(SUFFIXES) or name.startswith((".", "/", "~")) or Path(name).exists()


def load_rows(source: Source, packages: Collection[str] | None = None) -> list[Row]:
    """All rows of ``source`` in an order that depends on its content alone.

    Args:
        source: What to read.
        packages: With ``python-stdlib``, read only these packages.

    Raises:
        DataError: the source cannot be read, has no row, or a line of it is broken.
    """
    if source.kind == "stdlib":
        return read_stdlib(packages)
    if source.kind == "files":
        names = (source.name,) if isinstance(source.name, str) else source.name
        return read_files(find_files(names))
    return _load_hub(source)


def check_source(source: Source, option: str) -> None:
    """Check without reading a source that it can be read: only local files can be checked.

    Raises:
        DataError: a file does not exist or cannot be opened; names the option.
    """
    if source.kind == "hub":
        _check_hub_id(str(source.name))
    if source.kind != "files":
        return
    try:
        for file in find_files((source.name,) if isinstance(source.name, str) else source.name):
            with file.open("rb"):
                pass
    except DataError as error:
        raise DataError(f"data.{option}: {error}") from error
    except OSError as error:
        raise DataError(f"data.{option}: data file {error.filename} cannot be read: {error.strerror}") from error


def files_of(rows: Sequence[Row]) -> list[str]:
    """The distinct files of ``rows`` in order of appearance."""
    return list(dict.fromkeys(row.file for row in rows))


def _load_hub(source: Source) -> list[Row]:
    name = str(source.name)
    _check_hub_id(name)
    try:
        # Imported here: it takes seconds, and local sources do not need it.
        hub = import_module("datasets")
        table: Iterable[Mapping[str, Any]] = hub.load_dataset(name, source.config_name, split=source.split)
        rows = [Row(dict(values), name, place) for place, values in enumerate(table, start=1)]
    except Exception as error:  # the hub client raises dozens of kinds; all mean that this source is not to be had
        beside = [name + suffix for suffix in SUFFIXES if Path(name + suffix).exists()]
        hint = f"; did you mean the file {beside[0]}?" if beside else ""
        raise DataError(
            f"data set {name!r} (configuration {source.config_name!r}, split {source.split!r}) cannot be loaded from "
            f"the hub: {type(error).__name__}: {error}; check the id and the connection, or give a local JSONL file "
            f"or {STDLIB!r}{hint}"
        ) from error
    if not rows:
        raise DataError(f"data set {name!r}, split {source.split!r}, has no row")
    return rows


def _check_hub_id(name: str) -> None:
    if closest(name, [STDLIB], cutoff=0.8):
        raise DataError(f"source {name!r} is not known; did you mean {STDLIB!r}?")
    if name.count("/") > 1 or any(character.isspace() for character in name):
        # No hub id looks like this: it is a path that does not exist, and find_files words that.
        find_files([name])
