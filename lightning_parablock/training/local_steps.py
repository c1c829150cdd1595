"""Options of a client's local steps: a warm-up, FedProx's proximal term, an earlier end."""

from __future__ import annotations

import time
from collections.abc import Generator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


class OwnSteps:
    """When a client has made its own part of a round's local steps, where its machine is slow.

    Args:
        steps: Number of steps on which it trains; None for all.
        seconds: Seconds after the round began here from which on it skips steps; None for no limit.
    """

    def __init__(self, steps: int | None, seconds: float | None) -> None:
        self._steps, self._seconds = steps, seconds
        self._began_s = time.monotonic()
        self._decided: tuple[int, bool] = (0, False)

    def begin(self) -> None:
        """The client's part of a round begins."""
        self._began_s, self._decided = time.monotonic(), (0, False)

    def are_over(self, steps_made: int) -> bool:
        """Whether to skip the next step; one answer for all batches of a step, and never for the first step."""
        if steps_made != self._decided[0]:
            late = self._seconds is not None and time.monotonic() - self._began_s > self._seconds
            self._decided = steps_made, late or (self._steps is not None and steps_made >= self._steps)
        return self._decided[1]


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

    It has an entry for each scalar of x, so that a sparse gradient becomes a dense one.

    Args:
        parameters: x, those of the active block.
        starts: s, its value when the round began, in their shapes.
        mu: Weight of the term, dimensionless.
    """
    for parameter, start in zip(parameters, starts, strict=True):
        if parameter.grad is not None:
            if parameter.grad.is_sparse:
                parameter.grad = parameter.grad.to_dense()
            parameter.grad.add_((parameter - start) * mu)
