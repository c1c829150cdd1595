"""Files from elsewhere: journals, notes, checkpoints and the clients' states beside them."""

from __future__ import annotations

import io
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_parablock.checkpointing.elastic_checkpoints import KEY as ELASTIC_KEY
from lightning_parablock.checkpointing.elastic_checkpoints import ElasticEntry, read_elastic, with_entry
from lightning_parablock.checkpointing.sidecars import KEY, Entry, read_sidecar, sha256_of
from lightning_parablock.desk.message import decoded
from lightning_parablock.elastic.journal import FILE_NAME, Journal, read_lines
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.errors import CheckpointError, ConfigurationError, ProtocolError
from tests.elastic.seats import THREE
from tests.fuzz.target import Target, message

_FOLDER = tempfile.TemporaryDirectory(prefix="parablock-fuzz-")
_ENTRY = Entry("abc", ["1" * 64, "2" * 64], {"seed": "1"}, [("layer", 10)], 3, "3" * 64, sites=("a", "b"))
_ELASTIC = with_entry(
    {"state_dict": {"w": torch.zeros(2)}},
    ElasticEntry(3, b"state", "run", "a", THREE, {"seed": "1"}, (("layer", 2),), ancestors=("old",)),
)


def _with_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
    """Give a reader the bytes in a file."""

    def parse(data: bytes) -> object:
        path = Path(_FOLDER.name) / "file"
        path.write_bytes(data)
        return read(path)

    return parse


def _journal() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal("a")
        journal.keep_in(Path(folder))
        journal.note_opening(THREE, "run")
        journal.note_end("finished", "run")
        return (Path(folder) / FILE_NAME).read_bytes()


def _record() -> bytes:
    path = Path(_FOLDER.name) / "record"
    RunRecord(path).write("run", ("old", "older"))
    return path.read_bytes()


def _saved(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def _read_sidecar(path: Path) -> object:
    return read_sidecar(path, sha256_of(path))


def _read_entry(data: bytes) -> object:
    return Entry.of({KEY: decoded(data)}, "a.ckpt")


def _read_elastic_entry(data: bytes) -> object:
    said = decoded(data)
    if "trainer_state" in said:
        said["trainer_state"] = torch.zeros(3, dtype=torch.uint8)
    return ElasticEntry.of({**_ELASTIC, ELASTIC_KEY: said}, "a.ckpt")


_SAID = {**_ELASTIC[ELASTIC_KEY], "trainer_state": ""}

TARGETS = (
    Target("journal", _with_file(read_lines), (ConfigurationError,), (_journal(),)),
    Target("run-record", _with_file(lambda path: RunRecord(path).lineage()), (), (_record(),)),
    Target("sidecar", _with_file(_read_sidecar), (CheckpointError,), (_saved({"a": torch.zeros(2), "b": [1, "x"]}),)),
    Target(
        "checkpoint",
        _with_file(lambda path: read_elastic(TorchCheckpointIO(), path, None)),
        (ConfigurationError,),
        (_saved(_ELASTIC),),
    ),
    Target("entry", _read_entry, (CheckpointError, ProtocolError), (message(_ENTRY.as_dict()),)),
    Target("elastic-entry", _read_elastic_entry, (CheckpointError, ProtocolError), (message(_SAID),)),
)
