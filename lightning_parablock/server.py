"""The server of a shard of the model: deltas of one block in, the new committed value out.

The server is a role, not a machine. Where clients share it, each owns the same slice of every block; all arithmetic is
elementwise and every operation rounds on its own (no ``alpha=``, ``addcmul`` or ``lerp``), so any cut of a block
into shards and chunks gives the same bits.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_parablock.settings import ServerNesterov, ServerOptimizer, ServerSGD

State = dict[str, Tensor]
"""State of the server optimizer for one block: name -> tensor of the shard's shape."""

_VALUE = "value"


def weighted_mean(deltas: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
    """G = (sum of n_i Delta_i) / (sum of n_i), added in the order given, which must be ascending client id.

    Args:
        deltas: One vector a client, all of one shape.
        weights: n_i, one a client; 1 each for uniform weighting, else the samples trained in the round. 0 leaves a
            client out; where all are 0 nobody trained, and the mean is zero.

    Returns:
        A fresh tensor.
    """
    parts = [delta * weight for delta, weight in zip(deltas, weights, strict=True) if weight]
    if not parts:
        return torch.zeros_like(deltas[0])
    total = parts[0]
    for part in parts[1:]:
        total = total + part
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


@dataclass(frozen=True)
class StatePiece:
    """A part of the server optimizer's state, named by its place in the model and not by who keeps it.

    Attributes:
        block: Index of the block.
        name: Of the tensor, such as "velocity".
        first: Index in the block of its first scalar.
        values: Shape (scalars,), float32, on the CPU.
    """

    block: int
    name: str
    first: int
    values: Tensor


class ServerShard:
    """Owns the committed value W (fp32) of a slice of every block, and the server optimizer's state for it.

    One thread commits; :meth:`state` may be called from another.

    Args:
        optimizer: What to do with the mean delta.
        initial: The starting value of this server's slice of each block, by block index; kept, not copied.
        first: Index in its block of each slice's first scalar; None stands for whole blocks.
        saves_values: Whether the state holds W, too: needed where clients hold it less exactly.
    """

    def __init__(
        self,
        optimizer: ServerOptimizer,
        initial: Sequence[Tensor],
        first: Sequence[int] | None = None,
        *,
        saves_values: bool = False,
    ) -> None:
        self.optimizer = optimizer
        self.values = list(initial)
        self.states: list[State] = [{} for _ in initial]
        self._first = list(first) if first is not None else [0] * len(self.values)
        self._saves_values = saves_values
        self._before: dict[int, tuple[int, State]] = {}
        self._lock = threading.Lock()

    def begin(self, round_index: int, block: int) -> None:
        """Prepare for the commits of a round: keep the block's state as it was before, until it is settled."""
        with self._lock:
            self._before[round_index] = (block, {name: t.clone() for name, t in self._to_save(block).items()})

    def settle(self, round_index: int) -> None:
        """Every client has merged the round: the state before it is of no more use."""
        with self._lock:
            self._before.pop(round_index, None)

    def state(self) -> list[StatePiece]:
        """The server optimizer's state after the settled rounds: what is in flight will be submitted again."""
        with self._lock:
            states = {block: self._to_save(block) for block in range(len(self.values))}
            for _, (block, before) in sorted(self._before.items(), reverse=True):
                states[block] = before
            return [
                StatePiece(block, name, self._first[block], tensor.to("cpu", copy=True))
                for block, state in states.items()
                for name, tensor in state.items()
            ]

    def load_state(self, pieces: Iterable[StatePiece]) -> None:
        """Take over what overlaps with this shard, from pieces of any cut; the rest starts at zero."""
        for piece in pieces:
            mine = slice(self._first[piece.block], self._first[piece.block] + self.values[piece.block].numel())
            start, stop = max(mine.start, piece.first), min(mine.stop, piece.first + piece.values.numel())
            if start < stop:
                into = self.values[piece.block] if piece.name == _VALUE else self._state(piece.block)[piece.name]
                into[start - mine.start : stop - mine.start] = piece.values[start - piece.first : stop - piece.first]

    @torch.no_grad()
    def commit(self, block: int, part: slice, deltas: Sequence[Tensor], weights: Sequence[int]) -> Tensor:
        """Take in the deltas of one part of the shard and return its new committed value.

        Must be called once for each part of a block a round, the rounds in order, each after :meth:`begin`.

        Args:
            block: Index of the block.
            part: Scalars of the shard's slice that the deltas cover.
            deltas: One vector of the part's length a client of the cohort, ascending client id.
            weights: n_i, in the same order.

        Returns:
            The committed value of the part: a view that the next commit of the block overwrites.
        """
        mean = weighted_mean(deltas, weights)
        with self._lock:
            part_state = {name: tensor[part] for name, tensor in self._state(block).items()}
            value = self.values[block][part]
            value.copy_(_UPDATES[type(self.optimizer)](self.optimizer, value, mean, part_state))
        return value

    def _to_save(self, block: int) -> State:
        return {**self.states[block], **({_VALUE: self.values[block]} if self._saves_values else {})}

    def _state(self, block: int) -> State:
        state = self.states[block]
        if not state:
            state.update({name: torch.zeros_like(self.values[block]) for name in _STATE_NAMES[type(self.optimizer)]})
        return state
