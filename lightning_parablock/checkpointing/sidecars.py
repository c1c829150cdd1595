"""The sidecars of a checkpoint: what belongs to one rank alone, beside an ordinary Lightning checkpoint of W.

``X.ckpt`` holds the committed model and, under the key "parablock", an :class:`Entry`: the name of this save and the
checksum of every sidecar. ``X.ckpt.parablock/<save>/rank00000.pt`` holds the rest. Every file is written to a temporary
name, fsynced and renamed into place, and the sidecars are there before the checkpoint that names them; so a checkpoint
and its sidecars fit together at any moment, whichever process is killed when.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from lightning_parablock.checkpointing.formats import FORMAT, READABLE, in_present_words
from lightning_parablock.errors import CheckpointError
from lightning_parablock.system.places import is_name
from lightning_parablock.system.plain_values import numpy_numbers
from lightning_parablock.system.reading import reading

KEY = "parablock"


@dataclass(frozen=True)
class Entry:
    """What a checkpoint records about the run that saved it.

    Attributes:
        save: Name of this save, part of the sidecars' path.
        sidecars_sha256: Checksum of each rank's sidecar, in rank order.
        settings: The run's settings, printable.
        blocks: Name and number of scalars of each block, in order.
        round: Number of the round that was running.
        weights_sha256: Checksum of the committed model in the checkpoint.
        format: Format of the sidecars.
        sites: Names of the sites in rank order; empty where they had none.
    """

    save: str
    sidecars_sha256: list[str]
    settings: dict[str, str]
    blocks: list[tuple[str, int]]
    round: int
    weights_sha256: str
    format: int = FORMAT
    sites: tuple[str, ...] = ()

    @property
    def n_ranks(self) -> int:
        """How many ranks saved it."""
        return len(self.sidecars_sha256)

    def as_dict(self) -> dict[str, Any]:
        """For the checkpoint: strings, numbers, lists and dicts alone."""
        return {**dataclasses.asdict(self), "blocks": [list(block) for block in self.blocks], "sites": [*self.sites]}

    @classmethod
    def of(cls, checkpoint: Mapping[str, Any], path: str) -> Entry | None:
        """The entry in a checkpoint; None where this package did not save it.

        Raises:
            CheckpointError: another version of this package saved it, or it is damaged.
        """
        found: dict[str, Any] | None = checkpoint.get(KEY)
        if found is None:
            return None
        with reading(f"the entry of {path}", CheckpointError):
            if found.get("format") not in tuple(READABLE):
                raise CheckpointError(
                    f"{path} was saved in format {found.get('format')} of the clients' state, this version reads "
                    f"{' and '.join(map(str, READABLE))}; use the version of lightning-parablock that saved it"
                )
            return cls(
                save=_name(found["save"]),
                sidecars_sha256=[str(one) for one in found["sidecars_sha256"]],
                settings=in_present_words(found["settings"]),
                blocks=[(str(name), int(numel)) for name, numel in found["blocks"]],
                round=int(found["round"]),
                weights_sha256=str(found["weights_sha256"]),
                format=found["format"],
                sites=tuple(str(name) for name in found.get("sites", ())),
            )


def _name(save: object) -> str:
    if not is_name(save):
        raise CheckpointError(f"{save!r:.80} is no name of a save; use an earlier checkpoint")
    return str(save)


def sidecar_folder(checkpoint: Path) -> Path:
    """The folder beside a checkpoint."""
    return checkpoint.with_name(f"{checkpoint.name}.{KEY}")


def sidecar_path(checkpoint: Path, save: str, rank: int) -> Path:
    """A rank's file of one save."""
    return sidecar_folder(checkpoint) / save / f"rank{rank:05d}.pt"


def write_sidecar(path: Path, content: Mapping[str, Any]) -> str:
    """Write a sidecar atomically and return its SHA-256 (hexadecimal).

    Raises:
        CheckpointError: the disk is full, or the folder cannot be written.
    """
    write_atomically(path, lambda temporary: torch.save(dict(content), temporary))
    return sha256_of(path)


def read_sidecar(path: Path, sha256: str, *, weights_only: bool = True) -> dict[str, Any]:
    """Read a sidecar and check that it is the one meant.

    Args:
        path: The file.
        sha256: Its checksum (hexadecimal).
        weights_only: Whether it may hold nothing but tensors, plain values and NumPy's numbers.

    Raises:
        CheckpointError: it is not there, is torn, belongs to another save, or holds more than it may.
    """
    if not path.is_file():
        raise CheckpointError(f"the client's state {path} is not there")
    if sha256_of(path) != sha256:
        raise CheckpointError(f"the client's state {path} is damaged or belongs to another checkpoint (checksum)")
    try:
        with numpy_numbers():
            return torch.load(path, map_location="cpu", weights_only=weights_only)
    except Exception as error:  # the checksum is right: it was saved like this
        raise CheckpointError(
            f"the client's state {path} holds more than tensors and plain values ({what_was_foreign(error)}); "
            "if you trust the file, resume with weights_only=False, and with the checkpoint's path as ckpt_path"
        ) from error


def what_was_foreign(error: Exception) -> str:
    """The name of what ``torch.load(weights_only=True)`` refused, or its first line where there is none."""
    found = re.search(r"Unsupported (?:global|operand|class): (?:GLOBAL )?(\S+)", str(error))
    return found[1] if found else f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file, fsync it and rename it to ``path``: all of it or nothing.

    Raises:
        CheckpointError: it could not be written; names the file and what is free on its disk. The file that was at
            ``path`` before is untouched.
    """
    # Hosts that share a disk may have equal process ids.
    temporary = path.with_name(f".{path.name}.{os.getpid()}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            _to_disk(temporary)
            os.replace(temporary, path)
            _to_disk(path.parent)
        finally:
            temporary.unlink(missing_ok=True)
    except (OSError, RuntimeError) as error:  # on a full disk torch.save raises the latter, without a word of the disk
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise CheckpointError(f"{path} cannot be written: {reason} ({_free_space(path.parent)})") from error


def remove_sidecars(checkpoint: Path, rank: int, keep_save: str | None = None) -> None:
    """Remove a rank's sidecars of all saves but one; a folder that is empty then goes, too."""
    folder = sidecar_folder(checkpoint)
    for save in folder.iterdir() if folder.is_dir() else ():
        if save.name != keep_save:
            for file in (f"rank{rank:05d}.pt", *(stale.name for stale in save.glob(f".rank{rank:05d}.pt.*.tmp"))):
                (save / file).unlink(missing_ok=True)
            _remove_if_empty(save)
    _remove_if_empty(folder)


def sha256_of(path: Path) -> str:
    """SHA-256 (hexadecimal) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _free_space(folder: Path) -> str:
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    try:
        usage = shutil.disk_usage(folder)
    except OSError as error:
        return f"the disk of {folder} does not answer: {error}"
    return f"{usage.free:,} of {usage.total:,} bytes are free on the disk of {folder}"


def _to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):  # not empty, or another rank was faster
        folder.rmdir()
