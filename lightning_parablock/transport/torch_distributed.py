"""Exchanges over torch.distributed's point-to-point, on a dedicated process group.

One exchange of one block, in its order on every rank, all of it on the communication thread:

1. Post the receives: each remote client's delta on my shard, and the other servers' commits of their shards.
2. Send my clients' deltas, each server its shard, chunk by chunk.
3. As server of my shard, chunk by chunk: wait for every client's chunk, sum in ascending client id, apply the server
   optimizer, send the new value to every other rank.
4. Collect the other servers' chunks into the block's new value.
5. Wait until my own sends have left.

No step can wait for itself: a rank's sends never depend on its own receives of the same step, and every rank posts
the receives of steps 3 and 4 before it sends anything. The star is the same protocol with all shards but one empty.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.blocks import Block
from lightning_parablock.errors import PeerError, ProtocolError
from lightning_parablock.server import ServerShard
from lightning_parablock.settings import Settings
from lightning_parablock.transport import chunks
from lightning_parablock.transport.base import Exchange, ExchangeFacts, Transport, Upload
from lightning_parablock.transport.chunks import Header, Kind
from lightning_parablock.transport.membership import Membership, Watch
from lightning_parablock.transport.waiter import CommunicationThread, PendingExchange
from lightning_parablock.transport.wires import GlooWire, NcclWire, Ticket, Transfer, Wire

_CLOSE_LIMIT_S = 30.0


class TorchDistributedTransport(Transport):
    """Carries exchanges between the ranks of the default process group.

    Collective: every rank must construct it at the same point. Starts a daemon thread, which :meth:`close` ends.

    Args:
        membership: The ranks and their clients.
        watch: Knows who is alive; its owner closes it.
        settings: Limits, chunk size, topology.
        server: This rank's shard of the server.
        blocks: The partition, for sizes and names.
        device: Of the model; a CUDA device with the "nccl" backend keeps messages on the GPU.
        backend: "gloo" or "nccl".
    """

    def __init__(
        self,
        membership: Membership,
        watch: Watch,
        settings: Settings,
        server: ServerShard,
        *,
        blocks: Sequence[Block],
        device: torch.device,
        backend: str,
    ) -> None:
        super().__init__(server)
        self._membership = membership
        self._settings = settings
        self._blocks = blocks
        self._device = device
        limit_s = settings.exchange_timeout_s
        self._wire: Wire = NcclWire(device, limit_s) if backend == "nccl" else GlooWire(limit_s)
        self._watch = watch
        self._thread = CommunicationThread()
        self._thread.start()

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload]) -> Exchange:
        pending = PendingExchange(
            lambda: self.check(round_index, block), round_index, self._blocks[block].name, self._settings
        )
        start_s, taken = time.time(), self._wire.from_training_thread()
        self._thread.put(lambda: self._carry_out(pending, round_index, block, uploads, start_s, taken))
        return pending

    @override
    def check(self, round_index: int, block: int) -> None:
        try:
            self._watch.check()
            self._watch.check_takes_part(round_index)
        except PeerError as error:
            raise error.at(round_index, self._blocks[block].name) from error

    @override
    def announce_end(self, rounds: int) -> None:
        self._watch.announce_end(rounds)

    @override
    def close(self) -> None:
        if self._thread.close(_CLOSE_LIMIT_S):
            self._wire.close()

    def _carry_out(
        self,
        pending: PendingExchange,
        round_index: int,
        block: int,
        uploads: Mapping[int, Upload],
        start_s: float,
        taken: object,
    ) -> None:
        try:
            with self._wire.on_communication_thread(taken):
                run = _ExchangeRun(self, round_index, block, uploads, start_s)
                commit = run.run()
            pending.succeed(self._wire.hand_over(commit, taken).to(self._device), run.facts())
        except Exception as error:  # posting fails, too, once a peer is gone; the training thread raises it
            pending.fail(self._watch.cause_of(error))

    # What an _ExchangeRun needs to know of its transport.

    @property
    def membership(self) -> Membership:
        """The ranks and their clients."""
        return self._membership

    @property
    def settings(self) -> Settings:
        """The run's settings."""
        return self._settings

    @property
    def wire(self) -> Wire:
        """The dedicated group."""
        return self._wire

    @property
    def watch(self) -> Watch:
        """Who is alive."""
        return self._watch

    def numel(self, block: int) -> int:
        """Scalars of a block."""
        return self._blocks[block].numel


@dataclass(frozen=True)
class _Expected:
    """A receive that is posted, and the header that must come with it."""

    ticket: Ticket
    header: Header


class _ExchangeRun:
    """One exchange on the communication thread, see the module's steps."""

    def __init__(
        self,
        transport: TorchDistributedTransport,
        round_index: int,
        block: int,
        uploads: Mapping[int, Upload],
        start_s: float,
    ) -> None:
        self._t = transport
        self._members = transport.membership
        self._round, self._block = round_index, block
        self._uploads = uploads
        self._start_s = self._ready_s = start_s
        self._end_s = start_s
        self._upload_bytes = self._download_bytes = 0
        self._bounds = chunks.shard_bounds(transport.numel(block), self._members.n_ranks, transport.settings.topology)
        self._commit = torch.empty(transport.numel(block), device=transport.wire.device)

    def run(self) -> Tensor:
        """Carry the exchange out and return the block's new value, shape (numel,)."""
        wire = self._t.wire
        commit_receives = self._commit_receives()
        commits_in = wire.post([t for t, _ in commit_receives], [])[0] if wire.posts_early else []
        delta_receives = self._delta_receives()
        deltas_in, sent = wire.post([t for t, _ in delta_receives], self._delta_sends())
        commit_sends = self._serve([_Expected(k, h) for k, (_, h) in zip(deltas_in, delta_receives, strict=True)])
        if wire.posts_early:
            for transfers in commit_sends:
                sent += wire.post([], transfers)[1]
        else:
            outgoing = [transfer for transfers in commit_sends for transfer in transfers]
            commits_in, more = wire.post([t for t, _ in commit_receives], outgoing)
            sent += more
        self._collect([_Expected(k, h) for k, (_, h) in zip(commits_in, commit_receives, strict=True)])
        for ticket in sent:
            self._finish(ticket)
        self._end_s = time.time()
        return self._commit

    def facts(self) -> ExchangeFacts:
        """Times and bytes of a finished run."""
        return ExchangeFacts(self._start_s, self._ready_s, self._end_s, self._upload_bytes, self._download_bytes)

    # --- the plan, the same on both sides of every pair of ranks ------------------------------------------------------

    def _chunks(self, rank: int) -> list[slice]:
        return list(chunks.chunks_of(self._bounds[rank], self._t.settings.chunk_bytes))

    def _header(self, kind: Kind, sender: int, part: slice) -> Header:
        length_bytes = 4 * (part.stop - part.start)
        return Header(kind, self._members.generation, self._round, self._block, sender, part.start, length_bytes)

    def _delta_receives(self) -> list[tuple[Transfer, Header]]:
        return [
            self._receive(peer, self._header(Kind.DELTA, client, part), part)
            for part in self._chunks(self._members.rank)
            for peer in self._members.peers
            for client in self._members.clients[peer]
        ]

    def _commit_receives(self) -> list[tuple[Transfer, Header]]:
        return [
            self._receive(peer, self._header(Kind.COMMIT, peer, part), part)
            for peer in self._members.peers
            for part in self._chunks(peer)
        ]

    def _receive(self, peer: int, header: Header, part: slice) -> tuple[Transfer, Header]:
        message = chunks.empty_message(part.stop - part.start, self._t.wire.device)
        return Transfer(message, peer, header.kind), header

    # --- the steps ----------------------------------------------------------------------------------------------------

    def _delta_sends(self) -> Iterator[Transfer]:
        """Chunk i for every server before chunk i+1 for any, each rank beginning with the one after it."""
        rank, n_ranks = self._members.rank, self._members.n_ranks
        others = [(rank + step) % n_ranks for step in range(1, n_ranks)]
        plans = {peer: self._chunks(peer) for peer in others}
        for index in range(max(map(len, plans.values()), default=0)):
            for peer in others:
                for part in plans[peer][index : index + 1]:
                    yield from self._delta_messages(peer, part)

    def _delta_messages(self, peer: int, part: slice) -> Iterator[Transfer]:
        for client, upload in sorted(self._uploads.items()):
            header = self._header(Kind.DELTA, client, part)
            message = self._sealed(upload.delta[part], header, weight=upload.weight)
            yield self._outgoing(message, peer, Kind.DELTA)

    def _serve(self, expected: Sequence[_Expected]) -> Iterator[list[Transfer]]:
        """Steps 3: yields the sends of each committed chunk of my shard."""
        mine = self._bounds[self._members.rank]
        self._t.server.begin(self._round, self._block)
        waiting = iter(expected)
        for index, part in enumerate(self._chunks(self._members.rank)):
            deltas = {client: (upload.delta[part], upload.weight) for client, upload in self._uploads.items()}
            for _ in range(sum(len(self._members.clients[peer]) for peer in self._members.peers)):
                client, values, weight = self._arrived_delta(next(waiting))
                deltas[client] = (values, weight)
            if index == 0:
                self._ready_s = time.time()
            ordered = [deltas[client] for client in sorted(deltas)]
            within = slice(part.start - mine.start, part.stop - mine.start)
            value = self._t.server.commit(self._block, within, [d for d, _ in ordered], [n for _, n in ordered])
            self._commit[part] = value
            yield self._commit_messages(value, part)

    def _arrived_delta(self, expected: _Expected) -> tuple[int, Tensor, int]:
        header, values = self._open(expected)
        return header.sender, values, header.weight

    def _commit_messages(self, value: Tensor, part: slice) -> list[Transfer]:
        header = self._header(Kind.COMMIT, self._members.rank, part)
        message = self._sealed(value, header, since_ready_us=int(1e6 * (time.time() - self._ready_s)))
        return [self._outgoing(message, peer, Kind.COMMIT) for peer in self._members.peers]

    def _collect(self, expected: Sequence[_Expected]) -> None:
        serves_nothing = not self._chunks(self._members.rank)
        for item in expected:
            header, values = self._open(item)
            if serves_nothing and self._ready_s == self._start_s:
                # Who serves nothing learns from the first commit when the slowest client had submitted.
                self._ready_s = max(self._start_s, time.time() - header.since_ready_us / 1e6)
            self._commit[header.first : header.first + values.numel()] = values

    # --- messages -----------------------------------------------------------------------------------------------------

    def _sealed(self, values: Tensor, header: Header, *, weight: int = 0, since_ready_us: int = 0) -> Tensor:
        message = chunks.empty_message(values.numel(), self._t.wire.device)
        chunks.payload(message).copy_(values)
        fields = (header.kind, header.generation, header.round, header.block, header.sender, header.first)
        chunks.seal(message, Header(*fields, header.length_bytes, weight, max(0, since_ready_us)))
        return message

    def _outgoing(self, message: Tensor, peer: int, kind: Kind) -> Transfer:
        self._upload_bytes += message.numel()
        return Transfer(message, peer, kind)

    def _open(self, expected: _Expected) -> tuple[Header, Tensor]:
        self._finish(expected.ticket)
        message = expected.ticket.transfer.message
        self._download_bytes += message.numel()
        try:
            return chunks.unseal(message, expected.header), chunks.payload(message)
        except ProtocolError as error:
            sender = self._members.describe(expected.ticket.transfer.rank)
            raise ProtocolError(f"from {sender}: {error}") from error

    def _finish(self, ticket: Ticket) -> None:
        limit_s = self._t.settings.straggler_timeout_s + self._t.settings.exchange_timeout_s
        try:
            ticket.wait(limit_s)
        except Exception as error:  # whatever the backend raises, the watch knows better who was lost
            raise self._t.watch.explain(error, ticket.transfer.rank) from error
