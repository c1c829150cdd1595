"""What cannot work under this strategy, refused by name before any training starts."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BaseFinetuning
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import Optimizer

from lightning_parablock.blocks import Block
from lightning_parablock.errors import ConfigurationError


def refuse_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what is known before the model is built.

    Raises:
        ConfigurationError: manual optimization, or a callback that freezes and unfreezes layers itself.
    """
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{type(module).__name__} uses manual optimization (automatic_optimization=False), which this strategy "
            "does not support: rounds are counted by automatic optimizer steps"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, BaseFinetuning):
            raise ConfigurationError(
                f"the callback {type(callback).__name__} freezes and unfreezes layers itself, which would let clients "
                "drift apart; remove it, the strategy decides what trains"
            )


def refuse_validation_by_the_clock(trainer: Trainer) -> None:
    """Refuse validation after a time rather than a number of steps, which comes at another step on each client.

    Raises:
        ConfigurationError: the Trainer's val_check_interval is a time.
    """
    if getattr(trainer, "_val_check_time_interval", None) is not None:
        raise ConfigurationError(
            "buffers='average' needs all clients to validate at the same step, but Trainer(val_check_interval) is a "
            "time; give it in batches, or set buffers='local'"
        )


def refuse_parameters(module: torch.nn.Module, blocks: Iterable[Block]) -> None:
    """Refuse trainable parameters that are neither float32 nor bfloat16.

    Raises:
        ConfigurationError: names the first such parameter.
    """
    parameters = dict(module.named_parameters())
    for name in (name for block in blocks for name in block.parameter_names):
        dtype = parameters[name].dtype
        if dtype not in (torch.float32, torch.bfloat16):
            raise ConfigurationError(
                f"the trainable parameter {name!r} is {dtype}; trainable parameters must be float32 or bfloat16. Use "
                "precision='32-true', 'bf16-true' or 'bf16-mixed'"
            )


def the_optimizer(optimizers: Sequence[Optimizer | LightningOptimizer]) -> Optimizer:
    """The user's only optimizer, if its state can be dropped block by block.

    Raises:
        ConfigurationError: none or several optimizers, LBFGS, or one that allocates state for all parameters at once.
    """
    if len(optimizers) != 1:
        raise ConfigurationError(
            f"configure_optimizers must return exactly one optimizer, it returned {len(optimizers)}"
        )
    first = optimizers[0]
    optimizer = first.optimizer if isinstance(first, LightningOptimizer) else first
    name = type(optimizer).__name__
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigurationError(
            "LBFGS keeps one state for all parameters, which cannot be split into blocks; use AdamW"
        )
    if any(optimizer.state.values()):
        raise ConfigurationError(
            f"{name} allocates its state for all parameters at once, so it cannot be reset block by block; use an "
            "optimizer that does so at its first step, such as AdamW, SGD, RMSprop or Adafactor"
        )
    return optimizer


def refuse_uncovered(module: torch.nn.Module, blocks: Iterable[Block], optimizer: Optimizer) -> None:
    """Refuse blocks whose parameters the optimizer does not have: they would be sent but never trained.

    Raises:
        ConfigurationError: names the first such parameter.
    """
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    parameters = dict(module.named_parameters())
    for block in blocks:
        for name in block.parameter_names:
            if id(parameters[name]) not in held:
                raise ConfigurationError(
                    f"the optimizer does not have the trainable parameter {name!r} of block {block.name!r}; give it to "
                    "the optimizer in configure_optimizers, or set requires_grad=False on it"
                )
