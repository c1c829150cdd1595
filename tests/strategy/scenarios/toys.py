"""What several scenario files share: plain fits of a small task, and what the oracle says of them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from tests.support.here import N_RANKS, RANK
from tests.support.lightning_run import Steps, TaskModule, expected_weights, loader_of, patterns_of, trainer_for
from tests.tasks import adamw_default, mlp_task

TASK = mlp_task()
K, EPOCHS, BATCHES = 4, 2, 7
STEPS = EPOCHS * BATCHES


def strategy(**options: Any) -> ParaBlockStrategy:
    """ParaBlock with one round's delay on the task's blocks."""
    chosen = {
        "local_steps": K,
        "blocks": patterns_of(TASK),
        "seed": 3,
        "exchange_timeout_s": 60,
        "uneven_clients": "shorten",
    }
    return ParaBlockStrategy(**(chosen | options))  # type: ignore[arg-type]


def run(
    module: TaskModule | None = None,
    *,
    train: Any = None,
    val: Any = None,
    used: ParaBlockStrategy | None = None,
    **options: Any,
) -> TaskModule:
    """Two epochs of seven batches on this rank, or what the Trainer options say, and the trained module."""
    module = module or TaskModule(TASK, adamw_default)
    chosen = {"devices": N_RANKS, "max_epochs": EPOCHS, "default_root_dir": os.environ.get("SCRATCH"), **options}
    trainer = trainer_for(used or strategy(), **chosen)
    train, val = (loader_of(n, RANK) if given is None else given for given, n in ((train, BATCHES), (val, 3)))
    trainer.fit(module, train, val)
    return module


def epoch_loss(model: nn.Module, client: int, step: int) -> Tensor:
    """The loss of a client's step where epochs have seven batches."""
    return TASK.loss_fn(model, client, step % BATCHES)


def oracle(
    total_steps: int = STEPS, loss_fn: Any = epoch_loss, make_optimizer: Any = adamw_default, **more: Any
) -> dict[str, Tensor]:
    """The weights after so many steps of each client, two clients, in the plain loop."""
    options = {"n_clients": N_RANKS, "total_steps": total_steps, "loss_fn": loss_fn, "make_optimizer": make_optimizer}
    return expected_weights(TASK, strategy().settings, **options, **more)


def steps_made(module: LightningModule) -> int:
    """Optimizer steps that took part in rounds."""
    return sum(record.steps for record in module.trainer.strategy.round_records)  # type: ignore[attr-defined]


def on_all(value: Any) -> list[Any]:
    """The value of every rank; outside of a fit."""
    gathered: list[Any] = [None] * N_RANKS
    torch.distributed.all_gather_object(gathered, value)
    return gathered


class Do(Callback):
    """Calls functions at hooks."""

    def __init__(self, **hooks: Callable[[Trainer, Any], Any]) -> None:
        for name, action in hooks.items():
            setattr(self, name, lambda trainer, module, *_, action=action, **__: action(trainer, module))


class Watching(TaskModule):
    """Logs what a validation step returns, by other names and options than the task's own."""

    def __init__(self, log: Callable[[Watching, int], None], optimizers: Any = None) -> None:
        super().__init__(TASK, adamw_default)
        self.log_in_validation, self.optimizers_and_schedulers = log, optimizers

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        self.log_in_validation(self, batch_idx)

    def configure_optimizers(self) -> Any:
        return (
            self.optimizers_and_schedulers(self) if self.optimizers_and_schedulers else super().configure_optimizers()
        )


def batches(n: int) -> DataLoader[Any]:
    """A loader of so many batches of this rank."""
    return DataLoader(Steps(n, RANK), batch_size=1)
