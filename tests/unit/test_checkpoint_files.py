"""The files of a checkpoint: what may be in them, and what a disk without room leaves."""

from __future__ import annotations

import datetime
import resource
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from lightning_parablock.checkpointing.sidecars import Entry, read_sidecar, write_sidecar
from lightning_parablock.errors import CheckpointError
from lightning_parablock.settings import Settings
from lightning_parablock.system.plain_values import first_foreign, without_numpy_numbers

BEFORE = {"aggregation": repr(Settings().aggregation), "delay_warmup_rounds": "0"}
"""What was not said before there was a choice."""
NUMPY: dict[str, Any] = {
    "double": np.float64(0.1),
    "single": np.float32(0.1),
    "whole": np.int64(3),
    "flag": np.bool_(True),
    "array": np.arange(3.0),
}


def test_numpy_numbers_are_read_back_with_their_types(tmp_path: Path) -> None:
    sha256 = write_sidecar(tmp_path / "rank00000.pt", NUMPY)
    found = read_sidecar(tmp_path / "rank00000.pt", sha256)
    assert {name: type(value) for name, value in found.items()} == {name: type(v) for name, v in NUMPY.items()}
    assert all(np.array_equal(found[name], value) for name, value in NUMPY.items())


def test_for_readers_without_this_package_they_are_pythons() -> None:
    state = {"lr": [np.float64(0.1), (np.int64(3),)], "other": OrderedDict(x=np.bool_(True), y=np.array(2.0))}
    plain = without_numpy_numbers(state)
    assert plain == {"lr": [0.1, (3,)], "other": OrderedDict(x=True, y=2.0)}
    assert type(plain["lr"][0]) is float and type(plain["lr"][1][0]) is int and type(plain["other"]["x"]) is bool


def test_what_cannot_be_read_back_is_named(tmp_path: Path) -> None:
    assert first_foreign({**NUMPY, "x": [torch.ones(1), None, {"y": (1, "z")}]}) is None
    state = {"callbacks": {"Mine": {"since": [datetime.timedelta(1)]}}}
    assert first_foreign(state) == ("callbacks.Mine.since.0", "datetime.timedelta")
    path = tmp_path / "rank00000.pt"
    sha256 = write_sidecar(path, state)
    with pytest.raises(CheckpointError, match=r"rank00000.pt holds .*datetime\.timedelta.*weights_only=False"):
        read_sidecar(path, sha256)
    assert read_sidecar(path, sha256, weights_only=False) == state


def test_a_disk_without_room_is_named_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "rank00000.pt"
    sha256 = write_sidecar(path, {"x": torch.zeros(10)})
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))  # torch.save then fails with its RuntimeError
    try:
        with pytest.raises(CheckpointError, match=rf"{path} cannot be written: .* bytes are free on the disk of"):
            write_sidecar(path, {"x": torch.zeros(100_000)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert torch.equal(read_sidecar(path, sha256)["x"], torch.zeros(10))
    assert list(tmp_path.iterdir()) == [path]


def test_a_run_that_said_nothing_of_its_aggregation_had_the_mean() -> None:
    """Of formats 2 and 3 before there was a choice; resumed with another one it must be noticed."""
    found = {
        "save": "a",
        "sidecars_sha256": [],
        "settings": {"seed": "0"},
        "blocks": [],
        "round": 1,
        "weights_sha256": "",
        "format": 3,
    }
    entry = Entry.of({"parablock": found}, "x.ckpt")
    assert entry is not None and entry.settings == {"seed": "0", **BEFORE}
    found["settings"] = {"aggregation": "Another()"}
    entry = Entry.of({"parablock": found}, "x.ckpt")
    assert entry is not None and entry.settings == {**BEFORE, "aggregation": "Another()"}
