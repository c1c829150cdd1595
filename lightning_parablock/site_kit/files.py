"""Files of the site kit: of bounded size, written whole or not at all, and private where they must be."""

from __future__ import annotations

import os
import stat
import tempfile
from pathlib import Path

from lightning_parablock.errors import ConfigurationError, IdentityError, ParaBlockError
from lightning_parablock.system.places import reason

PRIVATE, PUBLIC, PRIVATE_FOLDER = 0o600, 0o644, 0o700
_OTHERS = 0o077


def read_bounded(path: Path, most_bytes: int, refusal: type[ParaBlockError]) -> str:
    """The text of a file.

    Raises:
        ParaBlockError: of the kind ``refusal``; the file cannot be read, is larger, or is no UTF-8 text.
    """
    try:
        _refuse_special(path, refusal)
        with path.open("rb") as file:
            return _bounded(file.read(most_bytes + 1), most_bytes, path, refusal)
    except OSError as error:
        raise refusal(f"{path} cannot be read: {reason(error)}") from error


def read_private(path: Path, most_bytes: int) -> str:
    """The text of a file that no other user may read, in a folder that no other user may enter.

    Raises:
        IdentityError: it cannot be read, is larger, is no UTF-8 text, or other users can read it.
    """
    try:
        refuse_open_to_others(path.parent, os.stat(path.parent))
        _refuse_special(path, IdentityError)
        with path.open("rb") as file:
            refuse_open_to_others(path, os.fstat(file.fileno()))
            return _bounded(file.read(most_bytes + 1), most_bytes, path, IdentityError)
    except OSError as error:
        raise IdentityError(f"{path} cannot be read: {reason(error)}") from error


def refuse_open_to_others(path: Path, status: os.stat_result) -> None:
    """Raise an IdentityError if other users may read, write or enter a file or folder."""
    if status.st_mode & _OTHERS:
        right = "700" if stat.S_ISDIR(status.st_mode) else "600"
        raise IdentityError(
            f"{path} is open to other users (mode {stat.S_IMODE(status.st_mode):04o}), and holds private keys. If "
            f"no one has read them: chmod {right} {path}; otherwise make new keys in another folder"
        )


def make_private_folder(folder: Path) -> None:
    """Create a folder of mode 0700, with its parents; one that is there must have this mode.

    Raises:
        IdentityError: it cannot be created, or other users may enter it.
    """
    try:
        folder.mkdir(mode=PRIVATE_FOLDER, parents=True, exist_ok=True)
        mode = stat.S_IMODE(os.stat(folder).st_mode)
    except OSError as error:
        raise IdentityError(f"the folder {folder} cannot be created: {reason(error)}") from error
    if mode & _OTHERS:
        raise IdentityError(
            f"the folder {folder} is open to other users (mode {mode:04o}), and private keys go there: chmod 700 "
            f"{folder}, or name another folder with --keys"
        )


def write_whole(path: Path, text: str, *, mode: int = PRIVATE, is_new: bool = False) -> None:
    """Write a file under a temporary name, fsync it and rename it into place.

    Args:
        path: Of the file.
        text: All of it.
        mode: Permissions of the file; it has never any others.
        is_new: Whether a file that is there already must stay as it is.

    Raises:
        ConfigurationError: it cannot be written, or is there already. Nothing has changed.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            prefix=f".{path.name}.", suffix=".tmp", dir=path.parent
        )  # of mode 0600
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(descriptor, mode)
            os.fsync(descriptor)
        if is_new:
            os.link(temporary, path)  # fails where a file is there
        else:
            os.replace(temporary, path)
            temporary = None
        _to_disk(path.parent)
    except FileExistsError as error:
        raise ConfigurationError(f"{path} is there already and is not overwritten; name another place") from error
    except OSError as error:
        raise ConfigurationError(f"{path} cannot be written: {reason(error)}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _refuse_special(path: Path, refusal: type[ParaBlockError]) -> None:
    """A pipe or a device could keep the reader waiting for ever."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise refusal(f"{path} is no regular file")


def _bounded(data: bytes, most_bytes: int, path: Path, refusal: type[ParaBlockError]) -> str:
    if len(data) > most_bytes:
        raise refusal(f"{path} is larger than {most_bytes:,} bytes, the most that such a file may have")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise refusal(f"{path} is no text file: {error.reason} at byte {error.start}") from error


def _to_disk(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
