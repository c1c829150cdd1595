"""The server of a shard of the model: mean deltas of a block in, the new committed value out.

The server is a role, not a machine. Where clients share it, each owns the same slice of every block. All arithmetic is
elementwise and every operation rounds on its own (no ``alpha=``, ``addcmul`` or ``lerp``), so any cut of a block into
shards and chunks gives the same bits.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_parablock.codecs.compression import Compression, NoCompression
from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.server.arithmetic import State, direction, initial_state
from lightning_parablock.server.optimizers import ServerOptimizer, ServerSGD

log = logging.getLogger(__name__)

_VALUE, _RESIDUAL = "value", "residual"


@dataclass(frozen=True)
class StatePiece:
    """A part of the server optimizer's state, named by its place in the model and not by the rank that keeps it.

    Attributes:
        block: Index of the block.
        name: Name of the tensor, such as "velocity".
        first: Index of its first scalar in the block.
        values: Shape (scalars,), float32, on the CPU.
    """

    block: int
    name: str
    first: int
    values: Tensor


class ServerShard:
    """Owns the committed value W (fp32) of a slice of every block, and the server's state for it, in host memory.

    With a lossy codec a commit carries the increment of W, with error feedback: u = increment + beta e; c = Q(u); W = W
    + c, as the clients hold it; e = u minus what W has moved; beta is the compression's decay. Server and clients apply
    the same decoded commit. Without one a commit carries W.

    One thread commits; :meth:`state` may be called from another.

    Args:
        optimizer: What to do with the mean delta.
        initial: The starting value of this server's slice of each block, by block index; kept, not copied.
        first: Index of each slice's first scalar in its block; None for whole blocks.
        compression: Codec for the commits.
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
        self._initial = initial_state(optimizer) | ({_RESIDUAL: 0.0} if self.compression.is_lossy else {})
        self._first = list(first) if first is not None else [0] * len(self.values)
        self._as_held = as_held
        self._before: dict[tuple[int, int], State] = {}
        self._lock = threading.Lock()

    def begin(self, round_index: int, block: int) -> None:
        """Prepare for a round's commits to a block: keep the block's state as it was, until the round is settled."""
        with self._lock:
            self._before[round_index, block] = {name: t.clone() for name, t in self._to_save(block).items()}

    def settle(self, round_index: int) -> None:
        """Every client has merged the round: the state before it is not needed any more."""
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
        """Take over what overlaps with this shard, from pieces of any cut; the rest keeps its initial value.

        State of another optimizer, or of a lossy codec that this run does not have, is left out with a warning.
        """
        given = list(pieces)
        foreign = {piece.name for piece in given} - {_VALUE, *self._initial}
        if foreign:
            said = "parablock: the checkpoint's server has %s, for which the settings of this run have no use: left out"
            log.warning(said, " and ".join(sorted(foreign)))
        for piece in (piece for piece in given if piece.name not in foreign):
            mine = slice(self._first[piece.block], self._first[piece.block] + self.values[piece.block].numel())
            start, stop = max(mine.start, piece.first), min(mine.stop, piece.first + piece.values.numel())
            if start < stop:
                into = self.values[piece.block] if piece.name == _VALUE else self._state(piece.block)[piece.name]
                into[start - mine.start : stop - mine.start] = piece.values[start - piece.first : stop - piece.first]

    @torch.no_grad()
    def commit(self, round_index: int, block: int, part: slice, mean: Tensor, payload: Tensor) -> Tensor:
        """Take in the mean delta of one part of the shard and move its committed value.

        Must be called once per part of a block and round, in the order of the rounds, each after :meth:`begin`.

        Args:
            round_index: Number of the round, for the learning rate's schedule.
            block: Index of the block.
            part: Scalars of the shard's slice that the mean covers.
            mean: G of the part, shape (scalars,), float32, on the host; is overwritten.
            payload: Receives what the clients are sent, shape (payload_bytes(part),), uint8.

        Returns:
            What the clients read from it: the part of W itself, or with a lossy codec its increment, before it is
            rounded to what they hold. A view that the next call overwrites.
        """
        with self._lock:
            state, step = self._step(round_index, block, part, mean)
            value = self.values[block][part]
            if not self.compression.is_lossy:
                self._coder.codec.encode(value.add_(step), payload)
                return value
            wanted = self._coder.add_left_out(step, state[_RESIDUAL])
            self._coder.codec.encode(wanted, payload)
            increment = self._coder.decode(payload, part.stop - part.start)
            moved = self._held(block, part, value + increment)
            state[_RESIDUAL].copy_(wanted.sub_(moved - value))
            value.copy_(moved)
            return increment

    def commit_bytes(self, scalars: int) -> int:
        """Length in bytes of what :meth:`commit` writes for a part of this number of scalars."""
        return self._coder.codec.payload_bytes(scalars)

    @property
    def can_be_followed(self) -> bool:
        """Whether every rank can compute from a mean by what W moves, and so needs no more than that."""
        return isinstance(self.optimizer, ServerSGD) and not self.compression.is_lossy and self._as_held is None

    @torch.no_grad()
    def follow(self, round_index: int, block: int, part: slice, mean: Tensor) -> Tensor:
        """As :meth:`commit` without a codec, for a rank that knows the mean: returns the increment of W."""
        with self._lock:
            _, step = self._step(round_index, block, part, mean)
            self.values[block][part].add_(step)
            return step

    def _step(self, round_index: int, block: int, part: slice, mean: Tensor) -> tuple[State, Tensor]:
        """The state of a part, moved on, and by what W moves before anything is lost; may be the mean, overwritten."""
        state = {name: tensor[part] for name, tensor in self._state(block).items()}
        step, lr = direction(self.optimizer, mean, state), self.optimizer.lr_of(round_index)
        return state, step.mul_(lr) if lr != 1 else step

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
