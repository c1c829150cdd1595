"""Files and folders to be written, checked before hours are spent on what is to be written there."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from lightning_parablock.errors import ConfigurationError


def refuse_unwritable(path: Path, what: str) -> None:
    """Make sure that a file or folder can be created at a path, or written into where it is a folder already.

    Nothing is left behind; the folders above the path are not created.

    Args:
        path: The file or folder.
        what: How a message names it, such as ``run_dir``.

    Raises:
        ConfigurationError: a file is in the way, or the disk does not let itself be written there.
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
    """The same of a file, which may be there and is then replaced.

    Raises:
        ConfigurationError: a folder is there, or see :func:`refuse_unwritable`.
    """
    if path.is_dir():
        raise ConfigurationError(f"{what} {path} is a folder; name a file")
    refuse_unwritable(path.parent, f"{what} {path}: folder")


def reason(error: OSError) -> str:
    """What the operating system says, such as ``Read-only file system``."""
    return error.strerror or (os.strerror(error.errno) if error.errno else str(error))
