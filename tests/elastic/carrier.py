"""A generation's transport without sockets: messages arrive late, in any order, or not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.elastic.shard import VersionedShard
from lightning_parablock.errors import PeerLostError
from lightning_parablock.regroup.log import Record
from lightning_parablock.server.aggregation import Aggregator, Received
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Topology
from lightning_parablock.transport.base import Exchange, ExchangeFacts, Transport
from lightning_parablock.transport.chunks import shard_bounds
from tests.elastic.world import World

Key = tuple[int, int]
Post = Callable[[int, Callable[["Carrier"], None]], None]
"""Sends to a member of the same generation: its client id, and what happens there."""


class Attempt(Exchange):
    """An exchange of one generation at one member."""

    def __init__(self, commit: Tensor, contributors: Sequence[int], *, brings_increment: bool) -> None:
        super().__init__(brings_increment=brings_increment)
        self.commit, self.contributors = commit, frozenset(contributors)
        self.missing = commit.numel()
        self.error: Exception | None = None
        self._notes: list[Callable[[], None]] = []

    @property
    def is_over(self) -> bool:
        return self.missing == 0 or self.error is not None

    @override
    def when_over(self, note: Callable[[], None]) -> None:
        self._notes.append(note)
        self.look()

    def look(self) -> None:
        """Call those who want to know, if it is over."""
        if self.is_over:
            notes, self._notes = self._notes, []
            for note in notes:
                note()

    @override
    def _received(self) -> Tensor:
        assert self.is_over, "no thread waits for an attempt that is under way"
        if self.error is not None:
            raise self.error
        return self.commit

    @property
    @override
    def facts(self) -> ExchangeFacts:
        return ExchangeFacts(0.0, 0.0, 0.0, 0, 0)


class SimulatedTransport(Transport):
    """What a member's part of a generation does without sockets, whatever its messages mean.

    Args:
        server: The member's shard.
        world: Time.
        aggregator: What the messages mean; None for each client's delta and their mean.

    Attributes:
        is_closed: Whether the generation has ended here.
        goes_on: Whether it is closed, and threads of it continue for a while.
    """

    def __init__(self, server: VersionedShard, world: World, aggregator: Aggregator | None = None) -> None:
        super().__init__(server, aggregator)
        self._world = world
        self.is_closed = self.goes_on = False
        self._uploads: list[tuple[Key, Upload]] = []
        self._on_the_way: dict[Key, int] = defaultdict(int)
        self._cut_short: set[Key] = set()

    @override
    def check(self, round_index: int, block: int) -> None:
        """Unused."""

    @override
    def note_step(self, round_index: int) -> None:
        """Unused."""

    @override
    def announce_end(self, rounds: int) -> None:
        """Unused."""

    @override
    def close(self) -> None:
        self.is_closed = True
        self.goes_on = self._world.rng.random() < 0.5  # threads of an old generation may continue for a while
        if self.goes_on:
            self._cut_short = self._unwritten()
            self._world.after(self._world.lag(5.0), self._scribble)

    def _scribble(self) -> None:
        """Write into what this generation was given to write into, and had not written into completely."""
        for key, upload in self._uploads:
            if upload.residual is not None and key in self._cut_short:
                upload.residual.after.fill_(float("nan"))

    def _unwritten(self) -> set[Key]:
        """The exchanges whose messages have not all left."""
        return {key for key, n in self._on_the_way.items() if n}


class Carrier(SimulatedTransport):
    """One member's part of a generation.

    Args:
        world: Time.
        record: The generation.
        client: The member.
        server: Its shard.
        sizes: Scalars of each block.
        topology: "star" or "sharded".
        post: Sends.
    """

    def __init__(
        self,
        world: World,
        record: Record,
        client: int,
        server: VersionedShard,
        sizes: Sequence[int],
        topology: Topology,
        post: Post,
    ) -> None:
        super().__init__(server, world)
        self.record, self.client = record, client
        self._post, self._sizes, self._topology = post, sizes, topology
        self._coder = Coder(server.compression)
        self._attempts: dict[Key, Attempt] = {}
        self._queue: list[Key] = []
        self._step = 0
        self._arrived: dict[Key, dict[int, tuple[Tensor, int]]] = {}
        self._early: dict[Key, list[tuple[slice, Tensor]]] = {}

    def _bounds(self, block: int) -> list[slice]:
        return shard_bounds(self._sizes[block], len(self.record.order), self._topology)

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        key = (round_index, block)
        assert not self._attempts or key > max(self._attempts), "exchanges are submitted in order"
        commit = torch.full((self._sizes[block],), float("nan"))
        attempt = Attempt(commit, cohort, brings_increment=self._coder.is_lossy)
        self._attempts[key] = attempt
        for server, part in zip(self.record.order, self._bounds(block), strict=True):
            for client, upload in uploads.items() if part.start < part.stop else ():
                values, weight = upload.here(part, self._coder).clone(), upload.weight
                self._on_the_way[key] += 1
                self._post(server, lambda there, c=client, v=values, w=weight: self._arrive(there, key, c, v, w))
        self._uploads += [(key, upload) for upload in uploads.values()]
        self._queue.append(key)
        for part, values in self._early.pop(key, []):
            self._world.after(0.0, lambda part=part, values=values: self.take_commit(key, part, values))
        self._world.after(0.0, self._serve)
        return attempt

    def _arrive(self, there: Carrier, key: Key, client: int, values: Tensor, weight: int) -> None:
        self._on_the_way[key] -= 1
        if key not in self._cut_short:
            there.take_delta(key, client, values, weight)

    def take_delta(self, key: Key, client: int, values: Tensor, weight: int) -> None:
        self._arrived.setdefault(key, {})[client] = (values, weight)
        self._serve()

    def take_commit(self, key: Key, part: slice, values: Tensor) -> None:
        attempt = self._attempts.get(key)
        if attempt is None:
            self._early.setdefault(key, []).append((part, values))
            return
        attempt.commit[part] = values
        attempt.missing -= values.numel()
        attempt.look()

    def fail(self) -> None:
        """A peer is gone: what is under way fails, some of it."""
        for attempt in self._attempts.values():
            if not attempt.is_over and self._world.rng.random() < 0.5:
                attempt.error = PeerLostError("a peer is gone")
                attempt.look()

    def _serve(self) -> None:
        """Serve one step of the oldest exchange, if all of its deltas are here."""
        if not self._queue or (self.is_closed and not self.goes_on):
            return
        key = self._queue[0]
        mine = self._bounds(key[1])[self.record.order.index(self.client)]
        if self._step == 0:
            self.server.begin(*key)
            self._step = 1
        arrived = self._arrived.get(key, {})
        if mine.start < mine.stop and not self._attempts[key].contributors <= set(arrived):
            return
        step = 1024 * (1 + (key[0] + self.client) % 2)
        first = (self._step - 1) * step
        part = slice(first, min(first + step, mine.stop - mine.start))
        if part.start < part.stop:
            received = {c: Received(w, 0.0, lambda v=v: v[part]) for c, (v, w) in arrived.items()}
            aggregate = self._aggregator.aggregate(key, received, part)
            payload = torch.empty(self._coder.codec.payload_bytes(part.stop - part.start), dtype=torch.uint8)
            commit = self.server.commit(*key, part, aggregate.mean, payload).clone()
            whole = slice(mine.start + part.start, mine.start + part.stop)
            for member in self.record.order if not self.is_closed else ():
                self._post(member, lambda there: there.take_commit(key, whole, commit))
        self._step += 1
        if part.stop >= mine.stop - mine.start:
            self._queue.pop(0)
            self._step = 0
        self._world.after(self._world.lag(0.1), self._serve)
