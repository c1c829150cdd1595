"""What cannot work under this strategy: refused with a reason before any training starts."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import (
    BaseFinetuning,
    BatchSizeFinder,
    Callback,
    LearningRateFinder,
    ModelPruning,
    StochasticWeightAveraging,
    WeightAveraging,
)
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch.optim import Optimizer

from lightning_parablock.blocks.partition import Block
from lightning_parablock.checks import require
from lightning_parablock.codecs.low_rank import FactorLayout
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.lightning_private.facts import synchronizes_batchnorm, validates_by_time
from lightning_parablock.settings import Compression, LowRank, Settings
from lightning_parablock.strategy.skipped_steps import NEW_SITES

_CANNOT_WORK: dict[type[Callback], str] = {
    BaseFinetuning: "freezes and unfreezes layers itself, which would let clients drift apart; remove it, the strategy "
    "decides what trains",
    StochasticWeightAveraging: "averages this client's own weights, not the committed model; remove it: "
    "server_optimizer='nesterov' smooths the committed model on the server",
    WeightAveraging: "averages this client's own weights, not the committed model; remove it: "
    "server_optimizer='nesterov' smooths the committed model on the server",
    ModelPruning: "changes weights behind the strategy's back, so clients would hold different models; prune before "
    "training or after it",
    LearningRateFinder: "trains and then takes the model back, which rounds cannot; find the rate on one client with "
    "another strategy, or set it by hand",
    BatchSizeFinder: "trains and then takes the model back, which rounds cannot, and each client would find a size of "
    "its own; find it on one client with another strategy, or set it by hand",
}


def refuse_trainer(trainer: Trainer, module: LightningModule) -> None:
    """Refuse what is known before the model is set up.

    Raises:
        ConfigurationError: manual optimization, synchronised BatchNorm, a callback that reads or changes weights behind
            the strategy's back, or validation by each client's own clock.
    """
    if not module.automatic_optimization:
        raise ConfigurationError(
            f"{type(module).__name__} uses manual optimization (automatic_optimization=False), which this strategy "
            "does not support: rounds are counted by automatic optimizer steps"
        )
    if synchronizes_batchnorm(trainer):
        raise ConfigurationError(
            "Trainer(sync_batchnorm=True) averages statistics over all clients in every forward pass, and clients meet "
            "at merges only; leave it out, and set buffers='average' for statistics that are averaged wherever the "
            "committed model is shown"
        )
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        for kind, why in _CANNOT_WORK.items():
            if isinstance(callback, kind):
                raise ConfigurationError(f"the callback {type(callback).__name__} {why}")
    if validates_by_time(trainer):
        raise ConfigurationError(
            "Trainer(val_check_interval=...) with a time goes by each client's own clock, so clients would validate at "
            "different batches and wait for each other; give a number of batches"
        )


def refuse_numbers(settings: Settings, n_ranks: int) -> None:
    """Refuse numbers of clients that do not fit the number of ranks, or each other.

    Raises:
        ConfigurationError: ranks without a client, a cohort of more clients than there are, or availability of others.
    """
    n_clients = settings.clients or n_ranks
    if n_clients < n_ranks:
        raise ConfigurationError(
            f"clients={n_clients}, but the run has {n_ranks} ranks, each of which hosts at least one "
            "client; start fewer ranks, or raise clients"
        )
    unknown = {client for round_ in settings.availability for client in round_ if client >= n_clients}
    if unknown:
        raise ConfigurationError(
            f"availability names client {min(unknown)}, but the run has {n_clients} clients, numbered from 0"
        )
    if settings.cohort is not None and settings.cohort > n_clients:
        raise ConfigurationError(f"cohort={settings.cohort} clients per round, but the run has {n_clients}")


@contextmanager
def refusing_several_optimizers(module: LightningModule) -> Generator[None]:
    """While Lightning makes the optimizers: look at what ``configure_optimizers`` returns before Lightning does.

    Lightning refuses several, too, and recommends manual optimization, which is refused as well.

    Raises:
        ConfigurationError: it returns several.
    """
    own, configure = vars(module).get("configure_optimizers"), module.configure_optimizers

    def configure_one() -> Any:
        made: Any = configure()
        if _n_optimizers(made) > 1:
            raise ConfigurationError("configure_optimizers must return one optimizer, it returned several")
        return made

    vars(module)["configure_optimizers"] = configure_one
    try:
        yield
    finally:
        del vars(module)["configure_optimizers"]
        if own is not None:
            vars(module)["configure_optimizers"] = own


def _n_optimizers(made: Any) -> int:
    """Optimizers in one of the forms that Lightning takes: alone, in a list, in dictionaries, beside schedulers."""
    if isinstance(made, (list, tuple)):
        some: Sequence[Any] = made
        if len(some) == 2 and isinstance(some[0], list):
            some = some[0]
        return sum(isinstance(one, (Optimizer, LightningOptimizer, dict)) for one in some)
    return 0 if made is None else 1


def refuse_uneven_loaders(n_loaders: int, *, uneven: bool, new_sites: bool = False) -> None:
    """Refuse several training loaders where a client may continue past the end of its data.

    Args:
        n_loaders: Number of training loaders.
        uneven: Whether it may.
        new_sites: Whether that is because sites come and go.

    Raises:
        ConfigurationError: which batches of a combination are this client's own cannot be told.
    """
    if uneven and new_sites and n_loaders > 1:
        raise ConfigurationError(
            f"there are {n_loaders} training loaders, and with elastic membership {NEW_SITES} of them; combine them "
            "into one"
        )
    if uneven and n_loaders > 1:
        raise ConfigurationError(
            f"there are {n_loaders} training loaders, and clients have different numbers of batches of them, or take "
            "turns; set uneven_clients='shorten' or give all clients loaders of the same lengths, and with clients or "
            "cohort combine them into one"
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


def refuse_factors(blocks: Iterable[Block], compression: Compression) -> None:
    """Refuse matrices none of which would travel as a factor.

    Raises:
        ConfigurationError: the compression is "low_rank", and everything would travel whole.
    """
    if isinstance(compression, LowRank):
        require(
            any(FactorLayout(block.shapes, compression.rank).has_factors for block in blocks),
            "compression='low_rank' would send everything whole: no matrix of the blocks has more values than its two "
            f"factors of rank {compression.rank} together; give LowRank a lower rank (for LoRA, far below its own), or "
            "use another compression",
        )


def refuse_untrained(block_names: Sequence[str]) -> None:
    """Refuse blocks that no round would train.

    Raises:
        ConfigurationError: there are some.
    """
    if block_names:
        raise ConfigurationError(
            f"no round would train {', '.join(block_names)}: with block_order='cyclic' and cohort_sampling='rotation' "
            "blocks and cohorts turn in step; choose block_order='sequential', cohort_sampling='uniform', or another "
            "number of blocks"
        )


def refuse_rate_steps(trainer: Trainer, local_steps: int | None, *, turns: int) -> None:
    """Refuse a scheduler that would step at a different place in each client's turn.

    Args:
        trainer: The trainer.
        local_steps: Local steps per turn; None where the clients have yet to agree on them.
        turns: Turns per round.

    Raises:
        ConfigurationError: its frequency does not divide the number of batches per turn.
    """
    batches = (local_steps or 1) * trainer.accumulate_grad_batches
    for config in trainer.lr_scheduler_configs:
        if turns > 1 and config.interval == "step" and batches % config.frequency:
            has = str(batches) if local_steps else f"{batches} for each of its local steps, whose number is 'auto'"
            raise ConfigurationError(
                f"the learning rate scheduler steps every {config.frequency} batches, and a client's turn has "
                f"{has}: the clients of a round would have different rates; choose a frequency that divides it"
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


def refuse_sparse_proximal(optimizer: Optimizer, proximal_mu: float) -> None:
    """Refuse FedProx's term, whose gradient is dense, with an optimizer that only takes sparse gradients.

    Raises:
        ConfigurationError: it is SparseAdam.
    """
    if proximal_mu and isinstance(optimizer, torch.optim.SparseAdam):
        raise ConfigurationError(
            "proximal_mu adds a dense gradient, and SparseAdam takes sparse gradients alone; use another optimizer, "
            "such as SGD or AdamW, or leave proximal_mu at 0"
        )


def refuse_uncovered(module: torch.nn.Module, blocks: Iterable[Block], optimizer: Optimizer) -> None:
    """Refuse blocks with parameters that the optimizer does not have: they would be sent but never trained.

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
