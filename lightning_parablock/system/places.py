"""Checks that files and folders can be written, before hours are spent on their contents."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_parablock.errors import ConfigurationError


def refuse_unwritable(path: Path, what: str) -> None:
    """Make sure that a file or folder can be created at a path, or that an existing folder can be written.

    Leaves nothing behind; missing parent folders are not created.

    Args:
        path: Path of the file or folder.
        what: Name of it in messages, such as ``run_dir``.

    Raises:
        ConfigurationError: a file is in the way, or the disk cannot be written there.
    """
    existing = path
    while not existing.exists() and existing != existing.parent:
        existing = existing.parent
    if not existing.is_dir():
        where = "it" if existing == path else existing
        raise ConfigurationError(f"{what} {path} cannot be written: {where} is a file; name another place")
    try:
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        where = "" if existing == path else f" in {existing}"
        raise ConfigurationError(
            f"{what} {path} cannot be written: {reason(error)}{where}; name another place, or make it writable"
        ) from error


def refuse_unwritable_file(path: Path, what: str) -> None:
    """Make sure that a file can be created at a path, or an existing one replaced.

    Raises:
        ConfigurationError: the path is a folder, or see :func:`refuse_unwritable`.
    """
    if path.is_dir():
        raise ConfigurationError(f"{what} {path} is a folder; name a file")
    refuse_unwritable(path.parent, f"{what} {path}: folder")


def refuse_existing_file(path: Path, what: str, advice: str) -> None:
    """Make sure that a new file can be created at a path, in a folder that is there.

    Args:
        path: Path of the file.
        what: Name of it in messages.
        advice: What to do where there is a file already.

    Raises:
        ConfigurationError: there is something already, or no folder for it, or see :func:`refuse_unwritable_file`.
    """
    refuse_unwritable_file(path, what)
    if path.exists():
        raise ConfigurationError(f"{what} {path} is there already and is not overwritten; {advice}")
    if not path.parent.is_dir():
        raise ConfigurationError(f"{what} {path} cannot be written: there is no folder {path.parent}")


def is_name(said: object) -> bool:
    """Whether something that was sent or read is the name of a file or a folder, and not the way to another place."""
    return isinstance(said, str) and said not in ("", "..") and "\0" not in said and Path(said).name == said


def reason(error: OSError) -> str:
    """The operating system's message, such as ``Read-only file system``."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
