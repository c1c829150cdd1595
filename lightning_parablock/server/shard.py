"""The server of a shard of the model: deltas of one block in, the new committed value out.

The server is a role, not a machine. Where clients share it, each owns the same slice of every block; all arithmetic is
elementwise and every operation rounds on its own (no ``alpha=``, ``addcmul`` or ``lerp``), so any cut of a block
into shards and chunks gives the same bits.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_parablock.codecs.compression import Compression, NoCompression
from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.server.optimizers import ServerAdam, ServerNesterov, ServerOptimizer, ServerSGD, ServerYogi

State = dict[str, Tensor]
"""State of the server optimizer for one block: name -> tensor of the shard's shape."""

_VALUE, _RESIDUAL = "value", "residual"


def weighted_mean(deltas: Iterable[Tensor], weights: Sequence[int], out: Tensor) -> Tensor:
    """G = (sum of n_i Delta_i) / (sum of n_i), added in the order given, which must be ascending client id.

    Args:
        deltas: One vector a client, all of the shape of ``out``; each is read before the next is asked for.
        weights: n_i, one a client; 1 each for uniform weighting, else the samples trained in the round. 0 leaves a
            client out; where all are 0 nobody trained, and the mean is zero.
        out: Receives the mean; must be none of the deltas.

    Returns:
        ``out``.
    """
    first = True
    for delta, weight in zip(deltas, weights, strict=True):
        if weight == 0:
            continue
        if first:
            torch.mul(delta, weight, out=out)
        elif weight == 1:
            out.add_(delta)  # the bits of delta * 1
        else:
            out.add_(delta * weight)
        first = False
    return out.zero_() if first else out.div_(sum(weights))


def mean_norm(norms: Sequence[float], weights: Sequence[int]) -> float:
    """Mean of the clients' finite gradient norms, weighted as their deltas are; NaN where no client has one."""
    known = [pair for pair in zip(norms, weights, strict=True) if pair[1] and math.isfinite(pair[0])]
    return sum(norm * weight for norm, weight in known) / sum(weight for _, weight in known) if known else math.nan


def _sgd(optimizer: ServerOptimizer, mean: Tensor, state: State) -> Tensor:
    return mean


def _nesterov(optimizer: ServerOptimizer, mean: Tensor, state: State) -> Tensor:
    assert isinstance(optimizer, ServerNesterov)
    velocity = state["velocity"]
    velocity.mul_(optimizer.momentum).add_(mean)
    return mean.add_(velocity * optimizer.momentum)


def _adam(optimizer: ServerOptimizer, mean: Tensor, state: State) -> Tensor:
    assert isinstance(optimizer, ServerAdam)
    state["variance"].mul_(optimizer.betas[1]).add_((mean * mean).mul_(1 - optimizer.betas[1]))
    return _adaptive(optimizer, mean, state)


def _yogi(optimizer: ServerOptimizer, mean: Tensor, state: State) -> Tensor:
    assert isinstance(optimizer, ServerYogi)
    variance, square = state["variance"], mean * mean
    variance.sub_((variance - square).sign_().mul_(square.mul_(1 - optimizer.betas[1])))
    return _adaptive(optimizer, mean, state)


def _adaptive(optimizer: ServerAdam, mean: Tensor, state: State) -> Tensor:
    momentum = state["momentum"].mul_(optimizer.betas[0]).add_(mean.mul_(1 - optimizer.betas[0]))
    return torch.div(momentum, state["variance"].sqrt().add_(optimizer.tau), out=mean)


def _zero(optimizer: ServerOptimizer) -> float:
    return 0.0


def _tau_squared(optimizer: ServerOptimizer) -> float:
    assert isinstance(optimizer, ServerAdam)
    return optimizer.tau**2


@dataclass(frozen=True)
class _Rule:
    """How one kind of server optimizer works.

    Attributes:
        direction: (optimizer, G, state) -> by what W moves at a learning rate of 1; G may be overwritten, state is.
        state: Name of each tensor of the state of a block, and what it starts with.
    """

    direction: Callable[[ServerOptimizer, Tensor, State], Tensor]
    state: dict[str, Callable[[ServerOptimizer], float]]


_ADAPTIVE_STATE = {"momentum": _zero, "variance": _tau_squared}
_RULES: dict[type[ServerOptimizer], _Rule] = {
    ServerSGD: _Rule(_sgd, {}),
    ServerNesterov: _Rule(_nesterov, {"velocity": _zero}),
    ServerAdam: _Rule(_adam, _ADAPTIVE_STATE),
    ServerYogi: _Rule(_yogi, _ADAPTIVE_STATE),
}


def moments(optimizer: ServerOptimizer) -> int:
    """Scalars of state that a server optimizer keeps for each scalar of W."""
    return len(_RULES[type(optimizer)].state)


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
    """Owns the committed value W (fp32) of a slice of every block, and the server's state for it, in host memory.

    With a lossy codec a commit carries the increment of W, with error feedback: u = increment + e; c = Q(u); W = W + c,
    as the clients hold it; e = u less what W has moved. Server and clients apply the same decoded commit. Else it
    carries W.

    One thread commits; :meth:`state` may be called from another.

    Args:
        optimizer: What to do with the mean delta.
        initial: The starting value of this server's slice of each block, by block index; kept, not copied.
        first: Index in its block of each slice's first scalar; None stands for whole blocks.
        compression: Codec of the commits.
        as_held: (block, first scalar, values) -> the values as the clients' parameters can hold them; None where
            these are float32.
    """

    def __init__(
        self,
        optimizer: ServerOptimizer,
        initial: Sequence[Tensor],
        first: Sequence[int] | None = None,
        *,
        compression: Compression | None = None,
        as_held: Callable[[int, int, Tensor], Tensor] | None = None,
    ) -> None:
        self.optimizer = optimizer
        self.values = list(initial)
        self.states: list[State] = [{} for _ in initial]
        self.compression = compression if compression is not None else NoCompression()
        self._coder = Coder(self.compression)
        self._rule = _RULES[type(optimizer)]
        self._initial = {name: start(optimizer) for name, start in self._rule.state.items()}
        self._initial |= {_RESIDUAL: 0.0} if self.compression.is_lossy else {}
        self._first = list(first) if first is not None else [0] * len(self.values)
        self._as_held = as_held
        self._before: dict[tuple[int, int], State] = {}
        self._lock = threading.Lock()

    def begin(self, round_index: int, block: int) -> None:
        """Prepare for a round's commits to a block: keep the block's state as it was, until the round is settled."""
        with self._lock:
            self._before[round_index, block] = {name: t.clone() for name, t in self._to_save(block).items()}

    def settle(self, round_index: int) -> None:
        """Every client has merged the round: the state before it is of no more use."""
        with self._lock:
            self._before = {place: state for place, state in self._before.items() if place[0] != round_index}

    def state(self) -> list[StatePiece]:
        """The server optimizer's state after the settled rounds: what is in flight will be submitted again."""
        with self._lock:
            states = {block: self._to_save(block) for block in range(len(self.values))}
            for (_, block), before in sorted(self._before.items(), key=lambda item: item[0], reverse=True):
                states[block] = before
            return [
                StatePiece(block, name, self._first[block], tensor.to("cpu", copy=True))
                for block, state in states.items()
                for name, tensor in state.items()
            ]

    def load_state(self, pieces: Iterable[StatePiece]) -> None:
        """Take over what overlaps with this shard, from pieces of any cut; the rest starts anew."""
        for piece in pieces:
            mine = slice(self._first[piece.block], self._first[piece.block] + self.values[piece.block].numel())
            start, stop = max(mine.start, piece.first), min(mine.stop, piece.first + piece.values.numel())
            if start < stop:
                into = self.values[piece.block] if piece.name == _VALUE else self._state(piece.block)[piece.name]
                into[start - mine.start : stop - mine.start] = piece.values[start - piece.first : stop - piece.first]

    @torch.no_grad()
    def commit(
        self,
        round_index: int,
        block: int,
        part: slice,
        deltas: Iterable[Tensor],
        weights: Sequence[int],
        payload: Tensor,
    ) -> Tensor:
        """Take in the deltas of one part of the shard and move its committed value.

        Must be called once for each part of a block a round, the rounds in order, each after :meth:`begin`.

        Args:
            round_index: Number of the round, for the learning rate's schedule.
            block: Index of the block.
            part: Scalars of the shard's slice that the deltas cover.
            deltas: One vector of the part's length a client of the cohort, ascending client id; on the host.
            weights: n_i, in the same order.
            payload: Receives what the clients are sent, shape (payload_bytes(part),), uint8.

        Returns:
            What the clients read from it: the part of W itself, or with a lossy codec its increment, before it is
            rounded to what they hold. A view that the next call overwrites.
        """
        scalars = part.stop - part.start
        mean = weighted_mean(deltas, weights, self._coder.scratch("mean", scalars, torch.device("cpu")))
        with self._lock:
            state = {name: tensor[part] for name, tensor in self._state(block).items()}
            step, lr = self._rule.direction(self.optimizer, mean, state), self.optimizer.lr_of(round_index)
            if lr != 1:
                step.mul_(lr)
            value = self.values[block][part]
            if not self.compression.is_lossy:
                self._coder.codec.encode(value.add_(step), payload)
                return value
            wanted = step.add_(state[_RESIDUAL])
            self._coder.codec.encode(wanted, payload)
            increment = self._coder.decode(payload, scalars)
            moved = self._held(block, part, value + increment)
            state[_RESIDUAL].copy_(wanted.sub_(moved - value))
            value.copy_(moved)
            return increment

    def _held(self, block: int, part: slice, value: Tensor) -> Tensor:
        return value if self._as_held is None else self._as_held(block, self._first[block] + part.start, value)

    def _to_save(self, block: int) -> State:
        # Clients that hold W less exactly than the server cannot give it back.
        with_value = self._as_held is not None and not self.compression.is_lossy
        return {**self.states[block], **({_VALUE: self.values[block]} if with_value else {})}

    def _state(self, block: int) -> State:
        state = self.states[block]
        if not state:
            state.update({name: torch.full_like(self.values[block], x) for name, x in self._initial.items()})
        return state
