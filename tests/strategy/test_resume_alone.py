"""One process that is stopped and resumed: what a checkpoint must bear, without other ranks."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_parablock import LowRank, ParaBlockStrategy
from lightning_parablock.errors import CheckpointError
from tests.support.lightning_run import Steps, TaskModule, adamw_default, loader_of, patterns_of, trainer_for
from tests.tasks import assert_same_bits, mlp_task

TASK, STEPS, SAVED, K = mlp_task(), 22, 10, 4
OF_STRATEGY = ("missing_client_state", "server_optimizer", "compression")


class SaveAt(Callback):
    def __init__(self, path: Path, **options: Any) -> None:
        self.path, self.options = path, options

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED:
            trainer.save_checkpoint(self.path, **self.options)


def numpy_rate(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    return torch.optim.AdamW(parameters, lr=np.linspace(0.01, 0.1, 5, dtype=np.float32)[1])


def numpy_hyperparameters() -> TaskModule:
    module = TaskModule(TASK, numpy_rate)
    module.save_hyperparameters({"learning_rate": np.float32(0.1)})
    return module


def fit(
    folder: Path, callbacks: list[Callback] | None = None, module: LightningModule | None = None, **options: Any
) -> dict[str, torch.Tensor]:
    """Weights after the fit; ``options`` are those of ``Trainer.fit`` but for OF_STRATEGY."""
    of_strategy = {name: options.pop(name) for name in OF_STRATEGY if name in options}
    strategy = ParaBlockStrategy(local_steps=K, blocks=patterns_of(TASK), seed=3, **of_strategy)
    module = module or numpy_hyperparameters()
    trainer = trainer_for(strategy, default_root_dir=str(folder), callbacks=callbacks or [])
    trainer.fit(module, loader_of(STEPS, 0), **options)
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


def test_a_learning_rate_of_numpy_resumes_exactly(tmp_path: Path) -> None:
    path = tmp_path / "x.ckpt"
    expected = fit(tmp_path, [SaveAt(path)])
    content = torch.load(path, weights_only=True)  # an ordinary checkpoint, that needs nothing of NumPy
    assert type(content["optimizer_states"][0]["param_groups"][0]["lr"]) is float
    assert_same_bits(fit(tmp_path, ckpt_path=path), expected)


class Odd(Callback):
    """A callback whose state is no plain value."""

    def state_dict(self) -> dict[str, Any]:
        return {"since": timedelta(1)}


def test_a_foreign_type_is_named_when_saving_and_read_where_the_file_is_trusted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "x.ckpt"
    expected = fit(tmp_path, [SaveAt(path), Odd()])
    assert "callbacks.Odd.since in the checkpoint is a datetime.timedelta" in caplog.text
    assert_same_bits(fit(tmp_path, [Odd()], ckpt_path=path, weights_only=False), expected)


class Breaks(Callback):
    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == SAVED:
            raise ZeroDivisionError


@pytest.mark.parametrize("kind", ["rescued", "weights alone", "state_dict alone"])
def test_the_weights_alone_are_refused_by_name_and_taken_with_fresh_state(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "rescued.ckpt"
    if kind == "rescued":
        with pytest.raises(ZeroDivisionError):
            fit(tmp_path, [Breaks()])
    else:
        fit(tmp_path, [SaveAt(path, weights_only=True)])
    content = torch.load(path, weights_only=True)
    if kind == "state_dict alone":
        torch.save({"state_dict": content["state_dict"]}, path)
    with pytest.raises(CheckpointError, match=r"rescued\.ckpt has no clients' state beside it"):
        fit(tmp_path, ckpt_path=path)
    trained = fit(tmp_path, ckpt_path=path, missing_client_state="fresh")
    assert any(not torch.equal(trained[name], value) for name, value in content["state_dict"].items())


@pytest.mark.parametrize(
    ("saved", "now", "left_out"),
    [
        ({"server_optimizer": "nesterov", "compression": "int8"}, {}, "residual and velocity"),
        ({"server_optimizer": "adam"}, {"server_optimizer": "nesterov"}, "momentum and variance"),
        ({"compression": "int8"}, {"compression": LowRank(1)}, "residual"),
        ({"compression": LowRank(1)}, {"compression": "int8"}, None),
    ],
    ids=str,
)
def test_other_settings_continue_from_the_model_and_say_what_of_the_server_they_leave_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, saved: dict[str, Any], now: dict[str, Any], left_out: str | None
) -> None:
    path = tmp_path / "x.ckpt"
    fit(tmp_path, [SaveAt(path)], **saved)
    with pytest.raises(CheckpointError, match="was saved with"):
        fit(tmp_path, ckpt_path=path, **now)
    caplog.clear()
    trained = fit(tmp_path, ckpt_path=path, missing_client_state="fresh", **now)
    assert all(value.isfinite().all() for value in trained.values())
    said = [record.getMessage() for record in caplog.records if "left out" in record.getMessage()]
    assert len(said) == (left_out is not None) and all(f"server has {left_out}, for which" in one for one in said)


class AsksForItsLength(TaskModule):
    """Lightning makes the loaders when it is asked for the number of steps, however early, and then perhaps again."""

    def configure_model(self) -> None:
        assert self.trainer.estimated_stepping_batches == 3 * STEPS

    def configure_optimizers(self) -> torch.optim.Optimizer:
        assert self.trainer.estimated_stepping_batches == 3 * STEPS
        return super().configure_optimizers()  # type: ignore[no-any-return]


@pytest.mark.parametrize("reload_every_epochs", [0, 1])
@pytest.mark.parametrize("saved_at", [STEPS, STEPS + SAVED], ids=["an epoch's end", "inside an epoch"])
def test_loaders_that_are_made_several_times_resume_exactly(
    tmp_path: Path, reload_every_epochs: int, saved_at: int
) -> None:
    class Saves(Callback):
        def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == saved_at > STEPS:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

        def on_train_epoch_end(self, trainer: Trainer, *_: Any) -> None:
            if trainer.global_step == saved_at:
                trainer.save_checkpoint(tmp_path / "x.ckpt")

    def fit(*callbacks: Callback, **options: Any) -> dict[str, torch.Tensor]:
        module = AsksForItsLength(TASK, adamw_default)
        trainer = trainer_for(
            ParaBlockStrategy(local_steps=K, blocks=patterns_of(TASK), seed=3),
            default_root_dir=str(tmp_path),
            callbacks=list(callbacks),
            max_epochs=3,
            reload_dataloaders_every_n_epochs=reload_every_epochs,
        )
        trainer.fit(module, DataLoader(Steps(STEPS, 0), batch_size=1, shuffle=True), **options)
        return module.weights()

    expected = fit(Saves())
    assert_same_bits(fit(ckpt_path=tmp_path / "x.ckpt"), expected)
