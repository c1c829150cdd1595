"""What cannot work is refused by name, before any training starts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BackboneFinetuning, Callback, ModelCheckpoint
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import nn
from torch.optim import Optimizer

from lightning_parablock.blocks.partition import partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.strategy.refusals import refuse_parameters, refuse_trainer, refuse_uncovered, the_optimizer

LAZY = [torch.optim.AdamW, torch.optim.SGD, torch.optim.RMSprop, torch.optim.Adafactor, torch.optim.NAdam]


def model() -> nn.Module:
    return nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))


def trainer_with(*callbacks: Callback) -> Any:
    return Trainer(accelerator="cpu", logger=False, callbacks=list(callbacks))


class Manual(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.automatic_optimization = False


def test_manual_optimization() -> None:
    with pytest.raises(ConfigurationError, match=r"Manual uses manual optimization"):
        refuse_trainer(trainer_with(), Manual())


def test_a_callback_that_unfreezes_layers() -> None:
    with pytest.raises(ConfigurationError, match=r"BackboneFinetuning freezes and unfreezes layers itself.*remove it"):
        refuse_trainer(trainer_with(ModelCheckpoint(), BackboneFinetuning()), LightningModule())


def test_other_callbacks_are_welcome() -> None:
    refuse_trainer(trainer_with(ModelCheckpoint()), LightningModule())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_trainable_parameters_of_another_type(dtype: torch.dtype) -> None:
    module = model()
    module[1].to(dtype)
    with pytest.raises(ConfigurationError, match=rf"parameter '1.weight' is {dtype}; .*must be float32"):
        refuse_parameters(module, partition(module, 2))


def test_frozen_parameters_may_be_of_any_type() -> None:
    module = model()
    module[1].to(torch.bfloat16).requires_grad_(False)
    refuse_parameters(module, partition(module, 2))


@pytest.mark.parametrize("make", LAZY)
def test_optimizers_that_allocate_at_their_first_step(make: Callable[..., Optimizer]) -> None:
    optimizer = make(model().parameters(), lr=0.1)
    assert the_optimizer([optimizer]) is optimizer
    assert the_optimizer([LightningOptimizer(optimizer)]) is optimizer


@pytest.mark.parametrize("n", [0, 2])
def test_another_number_of_optimizers_than_one(n: int) -> None:
    with pytest.raises(ConfigurationError, match=f"exactly one optimizer, it returned {n}"):
        the_optimizer([torch.optim.SGD(model().parameters(), lr=0.1) for _ in range(n)])


def test_lbfgs() -> None:
    with pytest.raises(ConfigurationError, match="LBFGS keeps one state for all parameters"):
        the_optimizer([torch.optim.LBFGS(model().parameters())])


def test_an_optimizer_that_allocates_for_all_parameters() -> None:
    with pytest.raises(ConfigurationError, match="Adagrad allocates its state for all parameters at once"):
        the_optimizer([torch.optim.Adagrad(model().parameters())])


def test_an_optimizer_that_lacks_a_blocks_parameter() -> None:
    module = model()
    optimizer = torch.optim.SGD([module[0].weight, module[0].bias, module[1].weight], lr=0.1)
    with pytest.raises(ConfigurationError, match=r"does not have the trainable parameter '1.bias' of block '1'"):
        refuse_uncovered(module, partition(module, "layers"), optimizer)
    optimizer.add_param_group({"params": [module[1].bias]})
    refuse_uncovered(module, partition(module, "layers"), optimizer)
