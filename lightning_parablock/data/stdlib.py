"""The source files of the running Python's standard library: real text on every machine, without a download."""

from __future__ import annotations

import sysconfig
from collections.abc import Collection, Iterator
from pathlib import Path

from lightning_parablock.data.rows import Row, suggest
from lightning_parablock.errors import DataError

# Tests, tables and topic lists: half of the library's bytes, and little of it is what a person would write.
_LEFT_OUT = frozenset(
    {
        "test",
        "tests",
        "idle_test",
        "idlelib",
        "encodings",
        "pydoc_data",
        "site-packages",
        "dist-packages",
        "__pycache__",
    }
)


def read_stdlib(packages: Collection[str] | None = None, root: Path | None = None) -> list[Row]:
    """One row a source file, with ``text`` and ``package`` (the top-level package or module), sorted by file name.

    Args:
        packages: Read only these top-level packages or modules; ``None`` reads all of them.
        root: Folder of the library; the running Python's by default.

    Raises:
        DataError: a package is not there, or the library is not there as source files.
    """
    folder = root or Path(sysconfig.get_paths()["stdlib"])
    names = _package_names(folder)
    if not names:
        raise DataError(f"python-stdlib: {folder} holds no Python source files; give another source")
    for package in sorted(packages or ()):
        if package not in names:
            raise DataError(f"python-stdlib has no package {package!r}; {suggest(package, names, 'packages')}")
    wanted = names if packages is None else sorted(packages)
    return [row for package in wanted for row in _rows_of(folder, package)]


def _package_names(folder: Path) -> list[str]:
    names = {entry.stem if entry.suffix == ".py" else entry.name for entry in folder.iterdir() if _is_source(entry)}
    return sorted(names - _LEFT_OUT)


def _is_source(entry: Path) -> bool:
    # _sysconfigdata_*.py is written at build time and differs from machine to machine
    if entry.suffix == ".py":
        return not entry.name.startswith("_sysconfigdata")
    return entry.name.isidentifier() and (entry / "__init__.py").is_file()


def _rows_of(folder: Path, package: str) -> Iterator[Row]:
    single = folder / f"{package}.py"
    files = [single] if single.is_file() else sorted((folder / package).rglob("*.py"), key=Path.as_posix)
    for file in files:
        relative = file.relative_to(folder)
        if _LEFT_OUT.isdisjoint(relative.parts):
            text = _read_text(file)
            if text.strip():
                yield Row({"text": text, "package": package}, relative.as_posix(), 1)


def _read_text(file: Path) -> str:
    """The text of a file; empty for one that cannot be read or is not UTF-8, which the caller passes over."""
    try:
        return file.read_bytes().decode("utf-8")
    except (OSError, UnicodeDecodeError):
        return ""
