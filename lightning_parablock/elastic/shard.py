"""A generation's server shard, which keeps its state after each exchange until that exchange has landed.

A redone exchange begins with the state as of the newest kept exchange of its block, which may be older than what the
server has computed meanwhile. A version is a :data:`~lightning_parablock.regroup.report.Label`: the exchange after
which it was taken, and the generation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.compression import Compression
from lightning_parablock.errors import CallOrderError
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.report import Label
from lightning_parablock.server.arithmetic import State
from lightning_parablock.server.optimizers import ServerOptimizer
from lightning_parablock.server.shard import ServerShard, StatePiece


@dataclass(frozen=True)
class Backup:
    """A version of a server's piece of a block, on its way to the member that keeps it in case the server is lost.

    Attributes:
        block: Index of the block.
        server: Client id of the server.
        label: The version.
        read: Gives the tensors, or None where the server no longer has this version, because a newer one is safe.
    """

    block: int
    server: int
    label: Label
    read: Callable[[], list[StatePiece] | None]


class VersionedShard(ServerShard):
    """A server shard whose state before the newest exchanges can be given and restored.

    W needs no version here: what has landed is in every member's store.

    Args:
        optimizer: See :class:`ServerShard`.
        initial: See :class:`ServerShard`.
        first: See :class:`ServerShard`.
        compression: See :class:`ServerShard`.
        as_held: See :class:`ServerShard`.
        generation: Number of the generation.
        kept: Of each block the newest kept exchange: the state that is loaded is that after it.

    Attributes:
        generation: Number of the generation.
        on_served: Called with an exchange when this server's part of it is complete, on the thread that serves.
    """

    def __init__(
        self,
        optimizer: ServerOptimizer,
        initial: Sequence[Tensor],
        first: Sequence[int],
        *,
        compression: Compression,
        as_held: Callable[[int, int, Tensor], Tensor] | None,
        generation: int,
        kept: Sequence[Key],
    ) -> None:
        super().__init__(optimizer, initial, first, compression=compression, as_held=as_held)
        self.on_served: Callable[[Key], None] = lambda key: None
        self.generation = generation
        self._older: list[list[tuple[Label, State]]] = [[] for _ in initial]
        self._newest: list[Label | None] = [(key, generation) for key in kept]
        self._served_scalars = 0

    @property
    def keeps_state(self) -> bool:
        """Whether there is any state besides W."""
        return bool(self._initial)

    @override
    def begin(self, round_index: int, block: int) -> None:
        if not self.keeps_state or not self.values[block].numel():
            return
        with self._lock:
            label = self._newest[block]
            if label is None:
                raise CallOrderError(f"round {round_index}: the exchange before it of block {block} is not complete")
            saved = {name: tensor.clone() for name, tensor in self.states[block].items()}
            self._older[block].append((label, saved))
            self._newest[block], self._served_scalars = None, 0

    @override
    def commit(self, round_index: int, block: int, part: slice, mean: Tensor, payload: Tensor) -> Tensor:
        commit = super().commit(round_index, block, part, mean, payload)
        if self.keeps_state and self._note_served(block, part.stop - part.start, (round_index, block)):
            self.on_served((round_index, block))
        return commit

    def _note_served(self, block: int, scalars: int, key: Key) -> bool:
        with self._lock:
            self._served_scalars += scalars
            is_complete = self._served_scalars == self.values[block].numel()
            if is_complete:
                self._newest[block] = (key, self.generation)
            return is_complete

    @override
    def settle(self, round_index: int) -> None:
        """The state before an exchange is needed until it has landed, which :meth:`release` says."""

    @override
    def state(self) -> list[StatePiece]:
        """A generation begins with what the members give each other, not with what a checkpoint holds."""
        return []

    def labels(self) -> dict[int, tuple[Label, ...]]:
        """The versions of each block, oldest first; empty where there is no state."""
        if not self.keeps_state:
            return {}
        with self._lock:
            return {
                block: tuple([label for label, _ in older] + ([newest] if newest is not None else []))
                for block, (older, newest) in enumerate(zip(self._older, self._newest, strict=True))
            }

    def piece(self, block: int, label: Label) -> list[StatePiece] | None:
        """A version of this server's part of a block, copied; None where it is not here, empty where it is initial."""
        with self._lock:
            versions: Mapping[Label, State] = dict(self._older[block])
            newest = self._newest[block]
            state = self.states[block] if label == newest else versions.get(label)
            if state is None:
                return None
            first = self._first[block]
            return [StatePiece(block, name, first, tensor.to("cpu", copy=True)) for name, tensor in state.items()]

    def release(self, landed: Key) -> None:
        """Drop what no redone exchange can begin with: an exchange that has landed is kept."""
        with self._lock:
            for block, older in enumerate(self._older):
                newest = self._newest[block]
                labels = [label for label, _ in older] + ([newest] if newest is not None else [])
                begin = max((i for i, label in enumerate(labels) if label[0] <= landed), default=0)
                del older[:begin]


class Backups:
    """Pieces of other servers' state, by block and client id of the server; the caller holds a lock."""

    def __init__(self) -> None:
        self._pieces: dict[tuple[int, int], dict[Label, list[StatePiece]]] = {}

    def take(self, block: int, server: int, label: Label, pieces: Iterable[StatePiece]) -> None:
        """Keep a version."""
        self._pieces.setdefault((block, server), {})[label] = list(pieces)

    def labels(self, generation: int) -> dict[tuple[int, int], tuple[Label, ...]]:
        """The versions of each piece that are of use in a generation, oldest first."""
        found = {
            place: tuple(sorted(label for label in versions if label[1] <= generation))
            for place, versions in self._pieces.items()
        }
        return {place: labels for place, labels in found.items() if labels}

    def piece(self, block: int, server: int, label: Label) -> list[StatePiece] | None:
        """A version; None where it is not here."""
        return self._pieces.get((block, server), {}).get(label)

    def release(self, landed: Key) -> None:
        """Keep every version from the newest landed exchange of its block on."""
        for versions in self._pieces.values():
            old = sorted(label for label in versions if label[0] <= landed)
            for label in old[:-1]:
                del versions[label]

    def open(self, generation: int, kept: Key, stays: Callable[[int, int], bool]) -> None:
        """A generation opens: drop what it redoes, and what has another place in its block from now on.

        Args:
            generation: Its number.
            kept: Its newest kept exchange.
            stays: (block, server) -> whether the server keeps the same piece.
        """
        for (block, server), versions in self._pieces.items():
            is_kept = stays(block, server)
            for label in [label for label in versions if label[1] < generation and not (is_kept and label[0] <= kept)]:
                del versions[label]
