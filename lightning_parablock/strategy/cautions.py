"""Warnings, once when training starts, about runs that work but are hardly what was meant."""

from __future__ import annotations

import logging
import math

from lightning.pytorch import Trainer

log = logging.getLogger(__name__)


def caution(trainer: Trainer, *, n_clients: int, round_steps: int, n_blocks: int) -> None:
    """Warn about a run with one client, and about one that ends before its first round does; not collective.

    Args:
        trainer: The trainer; its training loaders are set up.
        n_clients: Total number of clients; 0 where others may come.
        round_steps: Optimizer steps per round on a rank.
        n_blocks: Number of blocks.
    """
    if not trainer.is_global_zero:
        return
    for message in (_of_one_client(n_clients), _of_few_steps(_steps(trainer), round_steps, n_blocks)):
        if message:
            log.warning("parablock: %s", message)


def _of_one_client(n_clients: int) -> str | None:
    if n_clients != 1:
        return None
    return (
        "there is 1 client, so nothing is exchanged; for 2 clients on one machine set devices=2 (--trainer.devices 2); "
        "docs/launching.md has the commands for several machines"
    )


def _of_few_steps(steps: float, round_steps: int, n_blocks: int) -> str | None:
    if steps >= round_steps:
        return None
    return (
        f"training ends after {steps:g} optimizer steps, before the first round does, which has {round_steps}: 1 of "
        f"{n_blocks} blocks is trained, and exchanged once; set local_steps to {max(int(steps) // n_blocks, 1)} or "
        f"less, or train for {n_blocks * round_steps} steps, one round for each block"
    )


def _steps(trainer: Trainer) -> float:
    """Optimizer steps per rank in the whole fit; infinity if unknown."""
    limit = trainer.max_steps if trainer.max_steps >= 0 else math.inf
    epochs, batches = trainer.max_epochs, trainer.num_training_batches
    if epochs is None or epochs < 0 or math.isinf(batches):
        return limit
    return min(limit, epochs * math.ceil(batches / trainer.accumulate_grad_batches))
