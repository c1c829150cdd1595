"""A generation's secure sums without sockets: the package's messages arrive late, in any order, or not at all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.elastic.shard import VersionedShard
from lightning_parablock.errors import PeerLostError
from lightning_parablock.regroup.log import Record
from lightning_parablock.server.aggregation import Aggregator, Received
from lightning_parablock.server.secure.aggregator import SecureAggregator
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Topology
from lightning_parablock.transport.base import Exchange
from lightning_parablock.transport.chunks import shard_bounds
from tests.elastic.carrier import Attempt, Key, SimulatedTransport
from tests.elastic.world import World

Post = Callable[[int, Callable[["SecureCarrier"], None]], None]
Opened = Callable[[Key], None]
Place = tuple[Key, int]
"""An exchange and the number of its stage."""


@dataclass
class Work:
    """One exchange at one member."""

    key: Key
    stages: Sequence[Aggregator]
    uploads: Mapping[int, Upload]
    cohort: frozenset[int]
    attempt: Attempt
    stage: int = -1
    missing: int = 0
    is_written: bool = False
    to_serve: list[slice] = field(default_factory=list[slice])


def check_members(cohort: Sequence[int], record: Record) -> None:
    """All members of a generation take part in its exchanges, and no others."""
    assert set(cohort) == set(record.members), f"{cohort} and not {record.members}"


class SecureCarrier(SimulatedTransport):
    """One member's part of a generation.

    Args:
        world: Time.
        record: The generation.
        client: The member.
        server: Its shard.
        sizes: Scalars of each block.
        topology: "star" or "sharded".
        post: Sends to a member of the generation.
        aggregator: What the messages mean.
        opened: Told whenever this member, as a server, has all parts of a chunk of an exchange.
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
        aggregator: SecureAggregator,
        opened: Opened,
    ) -> None:
        super().__init__(server, world, aggregator)
        self.record, self.client = record, client
        self._post, self._sizes, self._topology = post, sizes, topology
        self._coder, self._opened = Coder(server.compression), opened
        self._works: dict[Key, Work] = {}
        self._queue: list[Key] = []
        self._arrived: dict[tuple[Place, int], dict[int, Tensor]] = defaultdict(dict)
        self._early: dict[Place, list[tuple[slice, Tensor]]] = defaultdict(list)
        self._begun: set[Place] = set()

    # --- deltas out ---------------------------------------------------------------------------------------------------

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        key = (round_index, block)
        assert not self._works or key > max(self._works), "exchanges are submitted in order"
        check_members(cohort, self.record)
        stages = self._aggregator.stages(key, uploads, frozenset(cohort))
        attempt = Attempt(
            torch.full((self._sizes[block],), float("nan")),
            cohort,
            brings_increment=self._aggregator.brings_increment(self._server),
        )
        self._works[key] = Work(key, stages, uploads, frozenset(cohort), attempt)
        self._uploads += [(key, upload) for upload in uploads.values()]
        self._queue.append(key)
        self._write()
        return attempt

    def _write(self) -> None:
        """Begin exchanges in their order: what is left out of one is a part of the next one."""
        for work in self._works.values():
            if work.stage < 0 and not self.is_closed:
                self._begin(work)
            if not work.is_written:
                break
        self._world.after(0.0, self._serve)

    def _begin(self, work: Work) -> None:
        """The next stage of an exchange: send this member's part of it."""
        work.stage += 1
        stage, place = work.stages[work.stage], (work.key, work.stage)
        work.missing = work.attempt.commit.numel()
        work.to_serve = self._parts(work.key)[self.client]
        for server, parts in self._parts(work.key).items():
            for part in parts:
                for sender, one in stage.contributions(work.key, work.uploads, work.cohort).items():
                    size_bytes = stage.contribution_bytes(work.key, part.stop - part.start, self._coder)
                    payload = torch.empty(size_bytes, dtype=torch.uint8)
                    one.write(part, payload, self._coder)
                    self._on_the_way[work.key] += 1
                    self._post(server, lambda there, p=part, s=sender, v=payload: self._arrive(there, place, p, s, v))
        work.is_written = work.stage + 1 == len(work.stages)
        for part, payload in self._early.pop(place, []):
            self._world.after(0.0, lambda part=part, payload=payload: self.take_commit(place, part, payload))

    def _arrive(self, there: SecureCarrier, place: Place, part: slice, sender: int, payload: Tensor) -> None:
        self._on_the_way[place[0]] -= 1
        if place[0] not in self._cut_short:
            there.take_delta(place, part, sender, payload)

    def _parts(self, key: Key) -> dict[int, list[slice]]:
        """The chunks of each server's shard, by its client id."""
        cut = shard_bounds(self._sizes[key[1]], len(self.record.order), self._topology)
        return {
            server: [slice(a, min(a + 1024, shard.stop)) for a in range(shard.start, shard.stop, 1024)]
            for server, shard in zip(self.record.order, cut, strict=True)
        }

    # --- serve --------------------------------------------------------------------------------------------------------

    def take_delta(self, place: Place, part: slice, sender: int, payload: Tensor) -> None:
        arrived = self._arrived[place, part.start]
        assert sender not in arrived, "each part is sent once"
        arrived[sender] = payload
        if set(arrived) == set(self.record.members):  # whether it is added up or not
            self._opened(place[0])
        self._serve()

    def _serve(self) -> None:
        """Serve one chunk of the oldest exchange, if all of its parts are here."""
        if not self._queue or (self.is_closed and not self.goes_on):
            return
        work = self._works[self._queue[0]]
        if work.stage < 0:
            return
        stage, place = work.stages[work.stage], (work.key, work.stage)
        if place not in self._begun:
            self._begun.add(place)
            stage.begin(self._server, work.key)
        if work.to_serve:
            part = work.to_serve[0]
            arrived = self._arrived[place, part.start]
            if not set(arrived) >= work.cohort:
                return
            work.to_serve.pop(0)
            self._serve_part(work, stage, place, part, arrived)
        elif work.stage + 1 == len(work.stages):
            self._queue.pop(0)
        else:
            return  # until the commits of this stage are here
        self._world.after(self._world.lag(0.1), self._serve)

    def _serve_part(
        self, work: Work, stage: Aggregator, place: Place, part: slice, arrived: Mapping[int, Tensor]
    ) -> None:
        scalars = part.stop - part.start
        mine = self._parts(work.key)[self.client][0].start
        received = {
            sender: Received(0, 0.0, lambda v=v: stage.read(v, scalars, self._coder)) for sender, v in arrived.items()
        }
        aggregate = stage.aggregate(work.key, received, part)
        payload = torch.empty(stage.commit_bytes(work.key, scalars, self._coder), dtype=torch.uint8)
        within = slice(part.start - mine, part.stop - mine)
        values = stage.commit(self._server, work.key, within, aggregate, payload)
        for member in self.record.order if not self.is_closed else ():
            if member != self.client:
                self._post(member, lambda there: there.take_commit(place, part, payload))
        self._put(work, part, values)

    # --- commits in ---------------------------------------------------------------------------------------------------

    def take_commit(self, place: Place, part: slice, payload: Tensor) -> None:
        work = self._works.get(place[0])
        if work is None or work.stage < place[1]:
            self._early[place].append((part, payload))
            return
        stage = work.stages[place[1]]
        self._put(work, part, stage.read_commit(work.key, part, payload, self._coder))

    def _put(self, work: Work, part: slice, values: Tensor | None) -> None:
        if values is not None:
            work.attempt.commit[part] = values
        work.missing -= part.stop - part.start
        if work.missing:
            return
        if work.stage + 1 < len(work.stages):
            if not self.is_closed:
                self._begin(work)
                self._write()
            return
        work.attempt.missing = 0
        work.attempt.look()

    # --- the end ------------------------------------------------------------------------------------------------------

    def fail(self) -> None:
        """A peer is gone: what is under way fails, some of it."""
        for work in self._works.values():
            if not work.attempt.is_over and self._world.rng.random() < 0.5:
                work.attempt.error = PeerLostError("a peer is gone")
                work.attempt.look()

    @override
    def _unwritten(self) -> set[Key]:
        return super()._unwritten() | {key for key, work in self._works.items() if not work.is_written}
