"""What a module, callbacks and a data module put into a checkpoint of an elastic run comes back to their hooks."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.checkpointing.elastic_checkpoints import ElasticEntry, with_entry
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.checkpoint_choice import Choice
from lightning_parablock.strategy.elastic_resume import HeldFile, ShareOfCheckpoint, held_checkpoint
from lightning_parablock.strategy.elastic_run import ElasticRun
from tests.elastic.fake_site import Board, FakeSite, elastic_strategy, enter, together
from tests.elastic.test_elastic_checkpoints import SETTINGS, Fails, Gatherers, entry_of
from tests.elastic.test_elastic_group import Ranks
from tests.elastic.test_round_start import BATCHES, EPOCHS, K, Module
from tests.support.lightning_run import Steps, trainer_for

SAVED_AT = 10
"""A step in the middle of round 2."""


class Vocabulary:
    """An object of the user's own."""


class Counts(Module):
    """Counts its steps outside of its weights and buffers, and says what it has loaded."""

    def __init__(self, extra: Any = None) -> None:
        super().__init__()
        self.trained, self.extra = 0, extra
        self.loaded: list[Any] = []

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.trained += 1
        return super().training_step(batch, batch_idx)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["module_key"] = {"trained": self.trained, "mean": torch.tensor([0.5]), "extra": self.extra}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.loaded.append(checkpoint["module_key"])
        self.trained = checkpoint["module_key"]["trained"]


class Watches(Callback):
    """Has a state of its own, and a key of its own beside it."""

    def __init__(self) -> None:
        self.batches = 0
        self.loaded: list[Any] = []
        self.first: int | None = None
        self.kept: Any = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        saving: Any = trainer.checkpoint_callback
        self.kept = (saving.best_model_path, list(saving.best_k_models))

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.first = self.batches if self.first is None else self.first

    def on_train_batch_end(self, *args: Any, **kwargs: Any) -> None:
        self.batches += 1

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.batches += 1000  # the sanity check must not count in a run that continues

    def state_dict(self) -> dict[str, Any]:
        return {"batches": self.batches}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded.append(state_dict)
        self.batches = state_dict["batches"]

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        checkpoint["callback_key"] = "kept"

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.loaded.append(checkpoint["callback_key"])


class Data(LightningDataModule):
    def __init__(self) -> None:
        super().__init__()
        self.loaded: list[Any] = []

    def train_dataloader(self) -> Any:
        return DataLoader(Steps(2 * BATCHES, 0), batch_size=2, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(Steps(2, 0))

    def state_dict(self) -> dict[str, Any]:
        return {"rows": 14}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.loaded.append(state_dict)


class Fitted:
    """A site that enters, and fits everything that saves something."""

    def __init__(
        self,
        root: Path,
        patch: pytest.MonkeyPatch,
        path: Path | None = None,
        *,
        site: str = "a",
        extra: Any = None,
        weights_only: bool | None = None,
        callbacks: tuple[Callback, ...] = (),
    ) -> None:
        enter(patch, FakeSite(Board({0: site}), 0))
        self.module, self.watches, self.data = Counts(extra), Watches(), Data()
        saving = ModelCheckpoint(root / "kept", monitor="val_loss", every_n_train_steps=SAVED_AT, save_top_k=-1)
        strategy = elastic_strategy(site, local_steps=K)
        trainer = trainer_for(
            strategy,
            callbacks=[self.watches, saving, *callbacks],
            enable_checkpointing=True,
            max_epochs=EPOCHS,
            num_sanity_val_steps=2,
            val_check_interval=BATCHES,
            default_root_dir=str(root),
        )
        kept = None if path is None else str(path)
        trainer.fit(self.module, datamodule=self.data, ckpt_path=kept, weights_only=weights_only)


def saved(root: Path) -> Path:
    return next((root / "kept" / "a").glob(f"*step={SAVED_AT}.ckpt"))


def test_hooks_get_what_they_saved_and_callbacks_are_where_the_round_began(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Fitted(tmp_path, monkeypatch)
    again = Fitted(tmp_path, monkeypatch, saved(tmp_path))
    assert again.module.loaded == [{"trained": SAVED_AT, "mean": torch.tensor([0.5]), "extra": None}]
    assert again.data.loaded == [{"rows": 14}]
    round_start, validated = SAVED_AT // K * K, 1000 * (1 + 1)  # the sanity check, and one epoch
    assert again.watches.loaded == ["kept", {"batches": round_start + validated}]
    assert (again.watches.first, again.watches.batches) == (round_start + validated, first.watches.batches)
    assert again.module.trained - SAVED_AT == first.module.trained - round_start


def test_files_that_were_kept_are_known_to_the_site_that_saved_them_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    Fitted(tmp_path, monkeypatch)
    path = saved(tmp_path)
    assert Fitted(tmp_path, monkeypatch, path).watches.kept == (str(path), [str(path)])
    assert Fitted(tmp_path, monkeypatch, path, site="b").watches.kept == ("", [])


def test_what_a_failing_site_has_left_has_the_keys_of_the_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RuntimeError, match="as wanted"):
        Fitted(tmp_path, monkeypatch, callbacks=(Fails(),))
    again = Fitted(tmp_path, monkeypatch, tmp_path / "rescued-a.ckpt")
    assert [one["trained"] for one in again.module.loaded] == [6]
    assert again.watches.loaded == [{"batches": K + 1000}]


def test_objects_of_the_users_own_are_read_where_the_user_trusts_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    Fitted(tmp_path, monkeypatch, extra=Vocabulary())
    assert "module_key.extra in the checkpoint is a tests.elastic.test_checkpoint_keys.Vocabulary" in caplog.text
    with pytest.raises(ConfigurationError, match=r"test_checkpoint_keys\.Vocabulary; .* weights_only=False"):
        Fitted(tmp_path, monkeypatch, saved(tmp_path))
    again = Fitted(tmp_path, monkeypatch, saved(tmp_path), weights_only=False)
    assert isinstance(again.module.loaded[0]["extra"], Vocabulary)


def held(tmp_path: Path, extra: Any) -> HeldFile:
    """A file that was saved in round 2, as :func:`held_checkpoint` reads it."""
    lightnings = {"state_dict": {"w": torch.ones(4)}, "epoch": 0, "global_step": 1, "loops": {}, "optimizer_states": []}
    keys = {"module_key": {"extra": extra}, "callbacks": {"Mine": {"best": 1.5}}, "pytorch-lightning_version": "2.6.0"}
    torch.save(with_entry({**lightnings, **keys}, entry_of(2)), tmp_path / "kept.ckpt")
    found = held_checkpoint(ParaBlockStrategy().checkpoint_io, str(tmp_path / "kept.ckpt"), weights_only=False)
    assert found is not None
    return found


@pytest.mark.parametrize("extra", ["plain", Vocabulary()], ids=["plain", "foreign"])
def test_founders_without_the_file_get_the_keys_or_all_founders_an_error(extra: Any, tmp_path: Path) -> None:
    board = Board({0: "a", 1: "b", 2: "c"})
    runs = [ElasticRun.enter(Ranks(), FakeSite(board, i), {}, None) for i in range(3)]  # type: ignore[arg-type]
    files = [None, held(tmp_path, extra), None]

    def load(index: int) -> Any:
        run = runs[index]
        shared = ShareOfCheckpoint.agreed(Gatherers(run), run, Choice("kept.ckpt"), files[index], SETTINGS)
        assert shared is not None
        try:
            checkpoint, entry = shared.load(run, files[index])
        except ConfigurationError as error:
            return str(error)
        assert isinstance(entry, ElasticEntry)
        return checkpoint["module_key"], "loops" in checkpoint

    found = together([partial(load, index) for index in range(3)])
    if extra == "plain":
        assert found == [({"extra": "plain"}, False)] * 3
    else:
        assert len(set(found)) == 1
        assert "module_key.extra is a tests.elastic.test_checkpoint_keys.Vocabulary" in found[0]
        assert "copy the checkpoint of site b to every founder" in found[0]


def test_where_sums_are_secure_founders_get_nothing_that_is_another_sites_own(tmp_path: Path) -> None:
    board = Board({0: "a", 1: "b", 2: "c"})
    runs = [ElasticRun.enter(Ranks(), FakeSite(board, i), {}, None) for i in range(3)]  # type: ignore[arg-type]
    files = [held(tmp_path, Vocabulary()), None, held(tmp_path, "of c")]

    def load(index: int) -> dict[str, Any]:
        run = runs[index]
        shared = ShareOfCheckpoint.agreed(Gatherers(run), run, Choice("kept.ckpt"), files[index], SETTINGS)
        assert shared is not None
        checkpoint, entry = shared.load(run, files[index], tells_own=False)
        assert (entry.round, checkpoint["state_dict"]["w"].tolist()) == (2, [1.0] * 4)
        return checkpoint

    found = together([partial(load, index) for index in range(3)])
    assert [one.get("module_key", {}).get("extra") for one in found[1:]] == [None, "of c"]
    assert isinstance(found[0]["module_key"]["extra"], Vocabulary), "its own, which is sent to nobody"
    assert found[1].keys() == found[0].keys() - {"module_key", "callbacks"}
