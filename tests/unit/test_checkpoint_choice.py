"""From which file a rank resumes: one that it has named or found itself, whatever path another rank sends."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from lightning.pytorch.trainer.states import TrainerFn

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.checkpointing.checkpoints import Checkpoints
from lightning_parablock.checkpointing.sidecars import KEY, Entry, write_sidecar
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.launching.checkpoint_choice import (
    Choice,
    agree_on_choice,
    agreed_path,
    is_own,
    note_choice,
    noted_choice,
)
from lightning_parablock.settings import Settings

NAMED, FOUND, NONE = Choice("/b/own.ckpt"), Choice("/b/found.ckpt", True), Choice(None)
NOTHING_FOUND = Choice(None, True)
OF_FIRST = Choice("/home/b/other/model.ckpt", True)


def letters(rank: int) -> str:
    return "ab"[rank]


class Second:
    """The second of two ranks; the first one answers what a test lets it, and sends what it likes."""

    global_rank, world_size, site_names = 1, 2, ("a", "b")

    def __init__(self, *answers: Any, sends: Any = None) -> None:
        self._answers, self._sends = list(answers), sends

    def describe(self, rank: int) -> str:
        return letters(rank)

    def gather_objects(self, value: Any) -> list[Any]:
        return [self._answers.pop(0), value]

    def broadcast(self, obj: Any, src: int = 0) -> Any:
        return obj if src == 1 else self._sends


class Reads(TorchCheckpointIO):
    """Notes which files are read."""

    def __init__(self) -> None:
        self.read: list[str] = []

    def load_checkpoint(self, path: Any, *args: Any, **kwargs: Any) -> Any:
        self.read.append(str(path))
        return super().load_checkpoint(path, *args, **kwargs)


def test_a_rank_that_asked_for_no_checkpoint_gets_none_by_what_another_has_found() -> None:
    for rank in (0, 1):
        with pytest.raises(ConfigurationError, match=r"must be given to all clients or to none: a has .*; b has none"):
            agreed_path([OF_FIRST, NONE], rank, letters)


@pytest.mark.parametrize("sent", [OF_FIRST, Choice("https://a/evil.ckpt", True), Choice("/home/b/other/model.ckpt")])
def test_what_a_user_named_is_not_replaced(sent: Choice) -> None:
    assert agreed_path([sent, NAMED], 1, letters) == NAMED.path
    assert agreed_path([sent, NAMED], 0, letters) == sent.path


@pytest.mark.parametrize("own", [FOUND, NOTHING_FOUND], ids=["found", "nothing found"])
def test_where_lightning_searched_the_first_that_found_one_decides(own: Choice) -> None:
    assert agreed_path([OF_FIRST, own], 1, letters) == OF_FIRST.path
    assert agreed_path([NOTHING_FOUND, FOUND], 0, letters) == FOUND.path


def trainer_with(*callbacks: Any) -> Trainer:
    return Trainer(
        accelerator="cpu", devices=1, logger=False, callbacks=[*callbacks], enable_checkpointing=bool(callbacks)
    )


def resumed_from(trainer: Trainer, ckpt_path: str | None, sent: Sequence[Choice]) -> list[tuple[str, bool]]:
    """The path that the strategy of the second rank is asked to load, if any, and whether it is its own."""
    asked: list[tuple[str, bool]] = []
    connector: Any = trainer._checkpoint_connector
    agree_on_choice(trainer, Second(*sent))

    def load_checkpoint(path: Any, **_: Any) -> dict[str, Any]:
        asked.append((path, is_own(trainer, path)))
        return {"state_dict": {}, "pytorch-lightning_version": "2.6.0", "global_step": 0, "epoch": 0}

    trainer.strategy.load_checkpoint = load_checkpoint  # type: ignore[method-assign]
    connector.resume_start(ckpt_path)
    return asked


@pytest.mark.parametrize("is_searching", [True, False])
def test_the_path_that_another_rank_has_sent_is_not_own(is_searching: bool) -> None:
    trainer = trainer_with()
    if is_searching:
        note_choice(trainer)
        connector: Any = trainer._checkpoint_connector
        connector._parse_ckpt_path(TrainerFn.FITTING, "last", model_provided=True, model_connected=True)
        assert noted_choice(trainer) == NOTHING_FOUND
        assert resumed_from(trainer, None, [OF_FIRST]) == [(OF_FIRST.path, False)]
    assert resumed_from(trainer, NAMED.path, [OF_FIRST]) == [(NAMED.path, True)]


@pytest.mark.parametrize("by", ["SLURM", "OnExceptionCheckpoint", "nothing"])
def test_lightning_may_search_without_being_asked(by: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Then a rank whose own disk has nothing continues as the others do."""
    if by == "SLURM":
        monkeypatch.setenv("SLURM_JOB_ID", "7")
        monkeypatch.setenv("SLURM_NTASKS", "1")
        monkeypatch.setenv("SLURM_JOB_NAME", "test")
    trainer = trainer_with(*([OnExceptionCheckpoint(tmp_path)] if by == "OnExceptionCheckpoint" else []))
    note_choice(trainer)
    connector: Any = trainer._checkpoint_connector
    connector._parse_ckpt_path(TrainerFn.FITTING, None, model_provided=True, model_connected=True)
    assert noted_choice(trainer) == Choice(None, by != "nothing")


def test_nothing_is_opened_at_a_path_of_another_rank(tmp_path: Path) -> None:
    """The first rank says that it has no such file: it is not read here, and not sent."""
    path, files = tmp_path / "model.ckpt", Reads()
    torch.save({"state_dict": {"secret": torch.ones(2)}}, path)
    with pytest.raises(ConfigurationError, match=r"model\.ckpt does not exist"):
        Checkpoints(Second(False), files, Settings()).load(str(path), None, is_own=False)
    with pytest.raises(ConfigurationError, match=r"evil\.ckpt does not exist"):
        Checkpoints(Second(False), files, Settings()).load("https://a/evil.ckpt", False, is_own=False)
    assert not files.read
    sent = {"state_dict": {"w": torch.zeros(1)}}
    ranks = Second(True, None, "step None", sends=sent)
    assert Checkpoints(ranks, files, Settings()).load(str(path), None, is_own=False) is sent
    assert not files.read
    own = Checkpoints(Second(False, None, None), files, Settings()).load(str(path), None, is_own=True)
    assert files.read == [str(path)] and own["state_dict"]["secret"].tolist() == [1.0, 1.0]


class Evil:
    """Creates a file where it is unpickled."""

    def __init__(self, mark: Path) -> None:
        self._mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self._mark,)


def test_no_object_is_made_of_a_sidecar_at_a_path_of_another_rank(tmp_path: Path) -> None:
    """``weights_only=False`` trusts the file that the user has named, and no other."""
    path, mark = tmp_path / "x.ckpt", tmp_path / "mark"
    sha256 = write_sidecar(tmp_path / "x.ckpt.parablock" / "s" / "rank00001.pt", {"own": Evil(mark)})
    settings = Settings(missing_client_state="error")
    entry = Entry("s", ["0", sha256], settings.fingerprint(), [], 0, weights_sha256=hash_tensors(()), sites=("a", "b"))
    checkpoint = {"state_dict": {}, KEY: entry.as_dict()}
    with pytest.raises(CheckpointError, match=r"rank00001\.pt holds more than tensors and plain values"):
        Checkpoints(Second((None, None)), Reads(), settings).resume(checkpoint, path, False, is_own=False)
    assert not mark.exists()
    with pytest.raises(TypeError):  # what it has made is no client's state
        Checkpoints(Second((None, None)), Reads(), settings).resume(checkpoint, path, False, is_own=True)
    assert mark.exists()
