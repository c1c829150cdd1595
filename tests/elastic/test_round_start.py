"""A fit that begins at round n where another one was does from there what that one did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR, ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader

from lightning_parablock.errors import ConfigurationError
from tests.elastic.fake_site import Board, FakeSite, elastic_strategy, enter
from tests.support.lightning_run import Steps, trainer_for

K, EPOCHS, BATCHES = 4, 4, 7
ROUNDS = EPOCHS * BATCHES // K


class Module(LightningModule):
    def __init__(self, scheduler: str = "step") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(3, 3) for _ in range(2))
        self.scheduler = scheduler
        self.register_buffer("steps", torch.tensor(0))
        self.register_buffer("scratch", torch.tensor(0), persistent=False)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        self.steps += 1
        self.scratch += 1
        return self.loss(batch)

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.loss(batch))

    def loss(self, batch: list[Tensor]) -> Tensor:
        x = torch.linspace(0.0, 1.0, 3) + batch[1].float().mean() / 10
        for layer in self.layers:
            x = layer(x)
        return (x - 1.0).square().sum()

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        made = {
            "step": lambda: {"scheduler": StepLR(optimizer, 3, 0.9), "interval": "step"},
            "lambda": lambda: {"scheduler": LambdaLR(optimizer, lambda t: 1 / (1 + t)), "interval": "epoch"},
            "plateau": lambda: {
                "scheduler": ReduceLROnPlateau(optimizer, patience=0, threshold=10.0),
                "interval": "epoch",
                "monitor": "val_loss",
            },
        }
        return {"optimizer": optimizer, "lr_scheduler": made[self.scheduler]()}


class Told(Callback):
    """What the trainer does, batch by batch, and W at the beginning of each round."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []
        self.round_starts: dict[int, int] = {}
        self.weights: dict[int, dict[str, Tensor]] = {}

    def _say(self, what: str, trainer: Trainer, *more: Any) -> None:
        loop = trainer.fit_loop.epoch_loop
        counters = (trainer.current_epoch, trainer.global_step, loop._batches_that_stepped)
        self.events.append((what, *counters, *more))

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say("epoch", trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        engine = trainer.strategy.session.engine  # type: ignore[attr-defined]
        if engine.round not in self.round_starts:
            # An epoch that begins with the round is this fit's own, too.
            before = -1 if self.events and self.events[-1][0] == "epoch" else 0
            self.round_starts[engine.round] = len(self.events) + before
            self.weights[engine.round] = {n: p.detach().clone() for n, p in pl_module.named_parameters()}
        rate = trainer.optimizers[0].param_groups[0]["lr"]
        self._say("batch", trainer, batch_idx, batch[1].tolist(), rate, engine.round, int(pl_module.steps))

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say("validation", trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._say("validated", trainer, trainer.callback_metrics["val_loss"].item())

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        stopping = next(one for one in trainer.callbacks if isinstance(one, EarlyStopping))  # type: ignore[attr-defined]
        self._say("epoch end", trainer, stopping.wait_count, stopping.best_score.item())


def fit(root: Path, module: Module, **options: Any) -> Told:
    told = Told()
    stopping = EarlyStopping("val_loss", patience=2, min_delta=options.pop("min_delta", 0.0))
    callbacks = [told, stopping, *options.pop("callbacks", [])]
    strategy = elastic_strategy(local_steps=K)
    chosen = {"max_epochs": EPOCHS, "num_sanity_val_steps": 2, "default_root_dir": str(root), **options}
    ckpt_path = chosen.pop("ckpt_path", None)
    trainer = trainer_for(strategy, callbacks=callbacks, **chosen)
    train, val = DataLoader(Steps(2 * BATCHES, 0), batch_size=2, shuffle=True), DataLoader(Steps(2, 0))
    trainer.fit(module, train, val, ckpt_path=ckpt_path)
    return told


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "validation within epochs": {"val_check_interval": 2},
    "validation every two epochs": {"check_val_every_n_epoch": 2, "num_sanity_val_steps": 0},
    "validation by batches of the whole run": {"val_check_interval": 4, "check_val_every_n_epoch": None},
    "accumulation": {"accumulate_grad_batches": 2},
    "stops early": {"min_delta": 1e9},
}


SCHEDULERS = ("step", "lambda", "plateau")
BOTH = [*((case, "step") for case in CASES), *(("validation within epochs", one) for one in SCHEDULERS[1:])]


@pytest.mark.parametrize(("case", "scheduler"), BOTH)
def test_it_does_what_the_other_did(case: str, scheduler: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({0: "a"})
    enter(monkeypatch, FakeSite(board, 0))
    donors = Module(scheduler)
    donor = fit(tmp_path, donors, **CASES[case])
    assert donor.round_starts.keys() == board.round_starts.keys()
    for first in list(donor.round_starts)[1:]:
        board.admitted_at = first
        board.slots.clear()  # the site is alone, and its collectives are new ones
        enter(monkeypatch, FakeSite(board, 0, is_founder=False))
        joiners = Module(scheduler)
        joiners.load_state_dict(donor.weights[first], strict=False)
        joiner = fit(tmp_path, joiners, **CASES[case])
        sanity = [event for event in joiner.events[:2] if event[0].startswith("valid")]
        assert joiner.events[len(sanity) :] == donor.events[donor.round_starts[first] :], f"round {first}"
        assert all(torch.equal(a, b) for a, b in zip(donors.parameters(), joiners.parameters(), strict=True))
        assert torch.equal(donors.steps, joiners.steps) and donors.scratch > joiners.scratch


class Keeping(Callback):
    """Keeps something that cannot be sent."""

    def state_dict(self) -> dict[str, Any]:
        return {"layer": nn.Linear(1, 1)}


def test_a_callback_whose_state_cannot_be_sent_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    with pytest.raises(ConfigurationError, match=r"callbacks\.Keeping\.layer is a torch\.nn\.modules\.linear\.Linear"):
        fit(tmp_path, Module(), callbacks=[Keeping()])


def test_other_schedulers_than_the_others_have_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({0: "a"})
    enter(monkeypatch, FakeSite(board, 0))
    fit(tmp_path, Module())
    board.admitted_at = 2
    enter(monkeypatch, FakeSite(board, 0, is_founder=False))
    module = Module()
    module.configure_optimizers = lambda: torch.optim.SGD(module.parameters(), lr=0.1)  # type: ignore[method-assign]
    with pytest.raises(ConfigurationError, match="make configure_optimizers the same everywhere"):
        fit(tmp_path, module)


class WithFrozen(Module):
    """Has a layer that is in no block, and no common seed."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.base = nn.Linear(3, 3).requires_grad_(False)

    def loss(self, batch: list[Tensor]) -> Tensor:
        return super().loss(batch) + self.base(torch.ones(3)).sum()


def test_a_joiner_with_other_frozen_parameters_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({0: "a"})
    enter(monkeypatch, FakeSite(board, 0))
    fit(tmp_path, WithFrozen(1))
    board.admitted_at = 2
    for seed in (1, 2):
        board.slots.clear()
        enter(monkeypatch, FakeSite(board, 0, is_founder=False))
        if seed == 1:
            fit(tmp_path, WithFrozen(seed))
            continue
        with pytest.raises(ConfigurationError, match=r"'base\.weight' and 1 more, .* use the same model file"):
            fit(tmp_path, WithFrozen(seed))
