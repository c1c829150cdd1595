"""The tasks as Lightning modules: what the oracle trains, trained by a Trainer."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tests.tasks import Task, adamw_default


class Steps(Dataset[int]):
    """Sample i is the number i: the task looks its batch up. ``client`` makes the data sets of clients differ."""

    def __init__(self, n_steps: int, client: int) -> None:
        self.n_steps = n_steps
        self.client = client

    def __len__(self) -> int:
        return self.n_steps

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.client, index


class TaskModule(LightningModule):
    """A user's module: nothing in it knows of federated learning."""

    def __init__(self, task: Task, make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer]) -> None:
        super().__init__()
        self.task = task
        self.model = task.make_model()
        self.make_optimizer = make_optimizer

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        client, step = (int(part) for part in batch)
        loss = self.task.loss_fn(self.model, client, step)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        client, step = (int(part) for part in batch)
        self.log("val_loss", self.task.loss_fn(self.model, client, step), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return self.make_optimizer(list(self.parameters()))

    def weights(self) -> dict[str, Tensor]:
        """The inner model's weights, named as the oracle names them."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def patterns_of(task: Task) -> list[str]:
    """The task's blocks as the strategy's ``blocks`` option."""
    return ["|".join(f"^model\\.{re.escape(name)}$" for name in names) for names in task.block_names]


def fit(task: Task, strategy: Any, client: int, total_steps: int, **trainer_options: Any) -> TaskModule:
    """Fit the task on this rank, whose environment torchrun has set, and return the trained module."""
    module = TaskModule(task, trainer_options.pop("make_optimizer", adamw_default))
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": int(trainer_options.pop("devices", 1)),
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        **trainer_options,
    }
    loader = DataLoader(Steps(total_steps, client), batch_size=1)
    validation = DataLoader(Steps(3, client), batch_size=1)
    trainer = Trainer(strategy=strategy, **options)
    trainer.fit(module, loader, validation)
    return module
