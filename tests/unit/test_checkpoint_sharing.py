"""What a rank that has the file of a checkpoint sends those that have not, and where the others save."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO

from lightning_parablock.checkpointing.checkpoints import Checkpoints
from lightning_parablock.checkpointing.final_model import in_own_folder
from lightning_parablock.errors import CheckpointError
from lightning_parablock.settings import SecureAggregation, Settings

T = TypeVar("T")
OWN = {"optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}], "callbacks": {"EarlyStopping": {"best": 1.5}}}
OF_ALL = {"state_dict": {"w": torch.ones(2)}, "global_step": 4, "epoch": 1, "pytorch-lightning_version": "2.6"}


class First:
    """The first of two ranks; the second one has no file."""

    global_rank, world_size, site_names = 0, 2, ("a", "b")

    def __init__(self) -> None:
        self.sent: list[Any] = []

    def describe(self, rank: int) -> str:
        return "ab"[rank]

    def gather_objects(self, value: T) -> list[T]:
        return [value, False if isinstance(value, bool) else None]  # type: ignore[list-item]

    def broadcast(self, obj: T, src: int = 0) -> T:
        self.sent.append(obj)
        return obj


def sent(folder: Path, settings: Settings) -> dict[str, Any]:
    ranks, path = First(), folder / "saved.ckpt"
    torch.save(OF_ALL | OWN, path)
    loaded = Checkpoints(ranks, TorchCheckpointIO(), settings).load(path, None, is_own=True)
    assert loaded.keys() == OF_ALL.keys() | OWN.keys()
    (only,) = ranks.sent
    return only


def test_the_first_ranks_own_state_stays_where_sums_are_secure(tmp_path: Path) -> None:
    """Moments of its optimizer are made of its gradients, and a callback's best value of its rows."""
    assert sent(tmp_path, Settings(aggregation=SecureAggregation())).keys() == OF_ALL.keys()


def test_without_secure_sums_the_others_may_begin_afresh_from_it(tmp_path: Path) -> None:
    assert sent(tmp_path, Settings()).keys() == OF_ALL.keys() | OWN.keys()


class Second(First):
    """The second of two ranks; the first one sends what a test lets it."""

    global_rank = 1

    def __init__(self, save: str, name: str) -> None:
        super().__init__()
        self._first = save, name

    def gather_objects(self, value: Any) -> list[Any]:
        return [(self._first, value[1]), value]


@pytest.mark.parametrize(
    ("save", "name"),
    [
        ("/home/b/.config/x", "x.ckpt"),
        ("../../..", "x.ckpt"),
        ("..", "x.ckpt"),
        ("", "x.ckpt"),
        ("s", "../x"),
        ("s", ""),
    ],
)
def test_the_first_ranks_names_lead_to_no_other_folder(save: str, name: str, tmp_path: Path) -> None:
    run: Any = Checkpoints(Second(save, name), TorchCheckpointIO(), Settings())  # type: ignore[arg-type]
    own = {"engine": {"round": 1}}
    with pytest.raises(CheckpointError, match=r"a names the save .* lead out of the folder of checkpoints"):
        run.save({"state_dict": {}, "global_step": 4}, tmp_path / "run" / "x.ckpt", own, [], None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("path", ["/home/b/.bashrc", "runs/a/../../../x.ckpt", "s3://a/x.ckpt"])
def test_the_finished_model_goes_to_no_folder_that_the_first_site_names(path: str) -> None:
    assert in_own_folder(path, "runs/a", "runs/b") is None
    assert in_own_folder("runs/a/checkpoints/final.ckpt", "runs/a", "runs/b") == "runs/b/checkpoints/final.ckpt"
