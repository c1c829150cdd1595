"""What the method may add to a client's local steps: a warm-up of the learning rate, and FedProx's proximal term."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


@contextmanager
def warmed_up(optimizer: Optimizer, steps_made: int, warmup_steps: int) -> Generator[None]:
    """Let one optimizer step have its share of the learning rate of each group; gives the rates back afterwards.

    Args:
        optimizer: Steps inside.
        steps_made: Local steps of the round before this one.
        warmup_steps: Step k of the round, from 1, has k / warmup_steps of the learning rate, and at most all of it.
    """
    if steps_made >= warmup_steps:
        yield
        return
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * ((steps_made + 1) / warmup_steps)
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate


@torch.no_grad()
def add_proximal_term(parameters: Sequence[nn.Parameter], starts: Sequence[Tensor], mu: float) -> None:
    """Gradient of (mu / 2) |x - s|^2, added to that of each parameter that has one (FedProx, arXiv 1812.06127, eq. 2).

    Args:
        parameters: x, those of the active block.
        starts: s, its value when the round began, in their shapes.
        mu: Weight of the term, dimensionless.
    """
    for parameter, start in zip(parameters, starts, strict=True):
        if parameter.grad is not None:
            parameter.grad.add_((parameter - start) * mu)
