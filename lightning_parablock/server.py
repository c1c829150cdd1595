"""The server of a shard of the model: deltas of one block in, the new committed value out.

The server is a role, not a machine. Where clients share it, each owns the same slice of every block; all arithmetic is
elementwise and every operation rounds on its own (no ``alpha=``, ``addcmul`` or ``lerp``), so any cut of a block
into shards and chunks gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_parablock.settings import ServerNesterov, ServerOptimizer, ServerSGD

State = dict[str, Tensor]
"""State of the server optimizer for one block: name -> tensor of the shard's shape."""


def weighted_mean(deltas: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """G = (sum of n_i Delta_i) / (sum of n_i), added in the order given, which must be ascending client id.

    Args:
        deltas: One vector a client, all of one shape.
        weights: n_i, one a client; 1 each for uniform weighting, else the samples trained in the round.

    Returns:
        A fresh tensor.
    """
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total = total + delta * weight
    return total / sum(weights)


def _sgd(optimizer: ServerOptimizer, value: Tensor, mean: Tensor, state: State) -> Tensor:
    assert isinstance(optimizer, ServerSGD)
    return value + mean * optimizer.lr


def _nesterov(optimizer: ServerOptimizer, value: Tensor, mean: Tensor, state: State) -> Tensor:
    assert isinstance(optimizer, ServerNesterov)
    state["velocity"].mul_(optimizer.momentum).add_(mean)
    step = mean + state["velocity"] * optimizer.momentum
    return value + step * optimizer.lr


_UPDATES: dict[type[ServerOptimizer], Callable[[ServerOptimizer, Tensor, Tensor, State], Tensor]] = {
    ServerSGD: _sgd,
    ServerNesterov: _nesterov,
}
_STATE_NAMES: dict[type[ServerOptimizer], tuple[str, ...]] = {ServerSGD: (), ServerNesterov: ("velocity",)}


class ServerShard:
    """Owns the committed value W (fp32) of a slice of every block, and the server optimizer's state for it.

    Args:
        optimizer: What to do with the mean delta.
        initial: The starting value of this server's slice of each block, by block index; kept, not copied.
    """

    def __init__(self, optimizer: ServerOptimizer, initial: Sequence[Tensor]) -> None:
        self.optimizer = optimizer
        self.values = list(initial)
        self.states: list[State] = [{} for _ in initial]

    @torch.no_grad()
    def commit(self, block: int, part: slice, deltas: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
        """Take in the deltas of one part of the shard and return its new committed value.

        Must be called once for each part of a block a round, the rounds in order.

        Args:
            block: Index of the block.
            part: Scalars of the shard's slice that the deltas cover.
            deltas: One vector of the part's length a client of the cohort, ascending client id.
            weights: n_i, in the same order.

        Returns:
            The committed value of the part: a view that the next commit of the block overwrites.
        """
        state = self._state(block)
        part_state = {name: tensor[part] for name, tensor in state.items()}
        value = self.values[block][part]
        update = _UPDATES[type(self.optimizer)]
        value.copy_(update(self.optimizer, value, weighted_mean(deltas, weights), part_state))
        return value

    def _state(self, block: int) -> State:
        state = self.states[block]
        if not state:
            state.update({name: torch.zeros_like(self.values[block]) for name in _STATE_NAMES[type(self.optimizer)]})
        return state
