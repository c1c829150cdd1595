"""Exchanges over torch.distributed's point-to-point, on a dedicated process group.

One exchange of one block, chunk by chunk, all of it off the training thread:

- deltas: each client's delta is encoded and sent, to each server its shard, while the next chunk is encoded;
- serve: as the server of its shard, each rank waits for every client's chunk, sums in ascending client id, applies the
  server optimizer, encodes the commit and sends it to all other ranks, while the next chunks arrive;
- collect: decode the other servers' chunks into the block's commit.

The star is the same protocol with all shards but one empty. The exchange is over for a rank as soon as its commit is
complete; its messages to slower ranks may still be leaving then.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.errors import PeerError
from lightning_parablock.membership.membership import Membership
from lightning_parablock.membership.watch import CLOSE_LIMIT_S
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Exchange, Transport
from lightning_parablock.transport.communication_thread import CommunicationThread
from lightning_parablock.transport.exchange_steps import ExchangeContext, ExchangeSteps, facts_of
from lightning_parablock.transport.lanes import LOCKSTEP, STREAMING, Lane, LaneContext
from lightning_parablock.transport.pacing import Pacer
from lightning_parablock.transport.pending import PendingExchange
from lightning_parablock.transport.staging import staging_of
from lightning_parablock.transport.watching import Watching
from lightning_parablock.transport.windows import Finish
from lightning_parablock.transport.wires import GlooWire, NcclWire, Ticket, Wire


class TorchDistributedTransport(Transport):
    """Carries exchanges between the ranks of the default process group.

    Collective: every rank must construct it at the same point. Starts daemon threads, which :meth:`close` ends.

    Args:
        membership: The ranks and their clients.
        watch: Knows which ranks are alive, such as :class:`~lightning_parablock.membership.watch.Watch`; its owner
            closes it.
        settings: Limits, chunk size, topology, codec.
        server: This rank's shard of the server.
        blocks: The partition, for sizes and names.
        device: The model's device. On CUDA messages stay on the GPU with the "nccl" backend, and are staged through
            pinned memory with "gloo".
        backend: "gloo" or "nccl".
        wire: Carries the messages; None for a new group over the ranks of the default one.
        pacer: Spaces the messages, shared with other senders of this rank; None for one of its own.
        aggregator: What travels, and what a server makes of it; None for each client's delta and their mean.
    """

    def __init__(
        self,
        membership: Membership,
        watch: Watching,
        settings: Settings,
        server: ServerShard,
        *,
        blocks: Sequence[Block],
        device: torch.device,
        backend: str,
        wire: Wire | None = None,
        pacer: Pacer | None = None,
        aggregator: Aggregator | None = None,
    ) -> None:
        super().__init__(server, aggregator)
        self._membership, self._watch = membership, watch
        self._settings, self._blocks = settings, blocks
        self._context = ExchangeContext(membership, settings, server)
        self._staging = staging_of(device)
        self._wire = self._open_wire(device, backend) if wire is None else wire
        pacer = Pacer(settings.upload_bps) if pacer is None else pacer
        finish = _finish_of(watch, settings)
        lane_context = LaneContext(
            membership, self._wire, finish, pacer, settings.compression.of_values, settings.cohort
        )
        self._lanes: list[tuple[Lane, CommunicationThread]] = []
        for kind in STREAMING if self._wire.posts_early else LOCKSTEP:
            lane = kind(lane_context)
            thread = CommunicationThread(kind.name)
            thread.start()
            self._lanes.append((lane, thread))

        self._ahead = CommunicationThread("parablock-ahead") if self._aggregator.works_ahead else None
        self._ahead_error: Exception | None = None
        if self._ahead is not None:
            self._ahead.start()

    def _open_wire(self, device: torch.device, backend: str) -> Wire:
        limit_s = self._settings.exchange_timeout_s
        return (
            NcclWire(device, limit_s) if backend == "nccl" else GlooWire(limit_s, pins_memory=self._staging.pins_memory)
        )

    @override
    def expect(self, round_index: int, work: Mapping[int, Sequence[int]]) -> None:
        if self._ahead is not None:
            for block, cohort in work.items():
                self._ahead.put(lambda key=(round_index, block), cohort=cohort: self._prepare(key, cohort))

    def _prepare(self, key: Key, cohort: Sequence[int]) -> None:
        try:
            self._aggregator.prepare(key, cohort)
        except Exception as error:  # the training thread raises it, at its next step
            self._ahead_error = error

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        key = (round_index, block)
        of_aggregator = self._aggregator.stages(key, uploads, cohort)
        carried = self._aggregator.carried_scalars(key, self._blocks[block].numel)
        commit = torch.empty(carried, dtype=torch.float32, device=self._wire.device)
        stages = [
            ExchangeSteps(self._context, stage, round_index, block, uploads, cohort, commit) for stage in of_aggregator
        ]
        pending = PendingExchange(
            lambda: self.check(round_index, block),
            lambda: self._late(round_index),
            lambda error: self._located(error, round_index, block),
            round_index,
            self._blocks[block].name,
            self._settings,
            n_threads=len(self._lanes),
            n_bringing=sum(lane.brings_commit for lane, _ in self._lanes),
            brings_increment=self._aggregator.brings_increment(self._server),
        )
        self._watch.note_submitted(round_index)
        mark = self._staging.mark()
        for lane, thread in self._lanes:
            thread.put(lambda lane=lane: self._carry_out(lane, key, stages, pending, mark))
        return pending

    def _carry_out(
        self, lane: Lane, key: Key, stages: Sequence[ExchangeSteps], pending: PendingExchange, mark: object
    ) -> None:
        try:
            with self._staging.entered(mark):
                # All lanes of this rank have done their part of a stage before any of them begins the next one.
                for steps in stages:
                    lane.prepare(steps)
                    pending.meet()
                    lane.carry_out(steps)
            if lane.brings_commit and pending.is_last_part():
                commit = self._aggregator.whole(self._server, key, stages[-1].commit)
                commit = self._staging.hand_over(commit, mark)  # a part of the exchange
                pending.succeed(commit, facts_of(stages))
        except Exception as error:  # posting fails, too, once a peer is gone; the training thread raises it
            pending.fail(self._watch.cause_of(error))

    def _late(self, round_index: int) -> str:
        """Which clients the exchange of a round waits for, or which messages, for errors and the log."""
        behind = self._watch.peers.behind(round_index)
        if behind:
            return behind
        awaited = [expected for lane, _ in self._lanes for expected in lane.awaited()]
        messages = [f"the {e.header.describe()} from {self._membership.describe(e.rank)}" for e in awaited]
        return f"all clients have submitted round {round_index}; under way: {'; '.join(messages) or 'own messages'}"

    @override
    def describe_client(self, client: int) -> str:
        rank = next(rank for rank, clients in enumerate(self._membership.clients) if client in clients)
        who = self._membership.describe(rank)
        return who if len(self._membership.clients[rank]) == 1 else f"client {client}, one of {who}"

    @override
    def check(self, round_index: int, block: int) -> None:
        if self._ahead_error is not None:
            raise self._ahead_error
        try:
            self._watch.check()
            self._watch.peers.check_takes_part(round_index)
        except PeerError as error:
            raise self._located(error, round_index, block) from error

    def _located(self, error: PeerError, round_index: int, block: int) -> PeerError:
        """The error with the round and block in which it was noticed, and what to do."""
        return error.at(round_index, self._blocks[block].name)

    @override
    def note_step(self, round_index: int) -> None:
        self._watch.note_step(round_index)

    @override
    def announce_end(self, rounds: int) -> None:
        self._watch.announce_end(rounds)

    @override
    def close(self) -> None:
        deadline_s = time.monotonic() + CLOSE_LIMIT_S
        if self._ahead is not None:
            self._ahead.end()
        for lane, thread in self._lanes:
            thread.end_with(lane.drain)
        # All of them, also after one that has not ended: none may be alive when the group is released.
        ended = [thread.join(deadline_s - time.monotonic()) for _, thread in self._lanes]
        if self._ahead is not None:
            self._ahead.join(deadline_s - time.monotonic())
        if all(ended):
            self._wire.close()


def _finish_of(watch: Watching, settings: Settings) -> Finish:
    """How lanes wait: a method of the transport, which has the lanes, would keep both from being freed."""
    limit_s = settings.straggler_timeout_s + settings.exchange_timeout_s

    def finish(ticket: Ticket) -> None:
        try:
            ticket.wait(limit_s)
        except Exception as error:  # whatever the backend raises, the watch knows better which rank was lost
            raise watch.explain(error, ticket.transfer.rank) from error

    return finish
