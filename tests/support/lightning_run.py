"""The tasks as Lightning modules: what the oracle trains, trained by a Trainer."""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_parablock.blocks.partition import Block
from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.settings import Settings
from tests.oracle import LossFn, MakeOptimizer, run_oracle
from tests.support.engine import oracle_config
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


def fit(
    task: Task,
    strategy: Any,
    client: int,
    total_steps: int,
    *,
    module: TaskModule | None = None,
    **trainer_options: Any,
) -> TaskModule:
    """Fit the task on this rank, whose environment torchrun has set, and return the trained module."""
    module = module or TaskModule(task, trainer_options.pop("make_optimizer", adamw_default))
    trainer = trainer_for(strategy, **trainer_options)
    trainer.fit(module, loader_of(total_steps, client), loader_of(3, client))
    return module


def trainer_for(strategy: Any, **changes: Any) -> Trainer:
    """A quiet Trainer on the CPU."""
    options: dict[str, Any] = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "default_root_dir": os.environ.get("SCRATCH", tempfile.gettempdir()),  # where a failing fit leaves its model
        **changes,
    }
    return Trainer(strategy=strategy, **options)


def loader_of(n_steps: int, client: int) -> DataLoader[tuple[int, int]]:
    """One batch a step, in order."""
    return DataLoader(Steps(n_steps, client), batch_size=1)


def expected_weights(
    task: Task,
    settings: Settings,
    *,
    n_clients: int,
    total_steps: int,
    block_names: Sequence[Sequence[str]] | None = None,
    loss_fn: LossFn | None = None,
    make_optimizer: MakeOptimizer = adamw_default,
    trains: Callable[[int, int], bool] = lambda client, step: True,
    samples: Callable[[int, int], int] | None = None,
    client_samples: Sequence[int] = (),
) -> dict[str, Tensor]:
    """The oracle's weights for a fit with these settings; its blocks are the task's unless others are given."""
    if total_steps == 0:
        return {name: parameter.detach().clone() for name, parameter in task.make_model().named_parameters()}
    names = tuple(tuple(block) for block in block_names or task.block_names)
    n_rounds = -(-total_steps // settings.local_steps)
    schedule = [block_of_round(settings.block_order, len(names), t, settings.seed) for t in range(n_rounds)]
    config = oracle_config(
        task, settings, schedule, n_clients=n_clients, total_steps=total_steps, client_samples=client_samples
    )
    config = replace(config, block_names=names, trains=trains, samples=samples)
    return run_oracle(config, task.make_model, loss_fn or task.loss_fn, make_optimizer).weights


def inner_block_names(blocks: Sequence[Block]) -> list[list[str]]:
    """Parameter names of the strategy's blocks, as the oracle names them."""
    return [[name.removeprefix("model.") for name in block.parameter_names] for block in blocks]
