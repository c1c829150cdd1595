"""The server optimizers' arithmetic (arXiv 2003.00295, algorithm 2): elementwise, each operation rounds on its own."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_parablock.server.optimizers import ServerAdam, ServerNesterov, ServerOptimizer, ServerSGD, ServerYogi

State = dict[str, Tensor]
"""State of a server optimizer for one block or a part of it: name -> tensor of its shape."""


def initial_state(optimizer: ServerOptimizer) -> dict[str, float]:
    """The name of each tensor of a block's state, with the value it starts from."""
    match optimizer:
        case ServerSGD():
            return {}
        case ServerNesterov():
            return {"velocity": 0.0}
        case ServerAdam():
            return {"momentum": 0.0, "variance": optimizer.tau**2}
        case _:
            raise TypeError(f"no arithmetic for {optimizer!r}")


def direction(optimizer: ServerOptimizer, mean: Tensor, state: State) -> Tensor:
    """By what W moves at a learning rate of 1.

    Args:
        optimizer: The choice.
        mean: G, shape (scalars,); may be overwritten.
        state: Is moved on by one commit, in place.
    """
    match optimizer:
        case ServerSGD():
            return mean
        case ServerNesterov():
            velocity = state["velocity"]
            velocity.mul_(optimizer.momentum).add_(mean)
            return mean.add_(velocity * optimizer.momentum)
        case ServerAdam():
            move_variance = _yogi_variance if isinstance(optimizer, ServerYogi) else _adam_variance
            move_variance(state["variance"], mean * mean, optimizer.betas[1])
            momentum = state["momentum"].mul_(optimizer.betas[0]).add_(mean.mul_(1 - optimizer.betas[0]))
            return torch.div(momentum, state["variance"].sqrt().add_(optimizer.tau), out=mean)
        case _:
            raise TypeError(f"no arithmetic for {optimizer!r}")


def moments(optimizer: ServerOptimizer) -> int:
    """Scalars of state that a server optimizer keeps for each scalar of W."""
    return len(initial_state(optimizer))


def _adam_variance(variance: Tensor, square: Tensor, beta: float) -> None:
    """v = beta v + (1 - beta) G^2; ``square`` is G^2 and is overwritten."""
    variance.mul_(beta).add_(square.mul_(1 - beta))


def _yogi_variance(variance: Tensor, square: Tensor, beta: float) -> None:
    """v = v - (1 - beta) G^2 sign(v - G^2); ``square`` is G^2 and is overwritten."""
    variance.sub_((variance - square).sign_().mul_(square.mul_(1 - beta)))
