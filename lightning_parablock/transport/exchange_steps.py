"""What one exchange of one block consists of, step by step; ``lanes.py`` decides which thread takes which step.

Step i concerns chunk i of each server's shard: its deltas go out, come in and are summed in ascending client id, then
its commit goes out and comes in. What is in the messages is the aggregator's business; a rank's own parts become what
those of others are, without a message.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.errors import ProtocolError
from lightning_parablock.membership.membership import Membership
from lightning_parablock.server.aggregation import Aggregator, Contribution, Received
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings
from lightning_parablock.transport import chunks
from lightning_parablock.transport.base import ExchangeFacts
from lightning_parablock.transport.chunks import Header, Kind, payload
from lightning_parablock.transport.windows import Expected

Arrived = Sequence[tuple[Expected, Tensor]]


@dataclass(frozen=True)
class ExchangeContext:
    """What all exchanges of a run share.

    Attributes:
        members: The ranks.
        settings: Topology and chunk size.
        server: This rank's shard of the server.
    """

    members: Membership
    settings: Settings
    server: ServerShard


class ExchangeSteps:
    """One stage of one exchange on one rank.

    Args:
        context: What it shares with the others.
        aggregator: What travels, and what a server makes of it.
        round_index: Number of the round.
        block: Index of the block.
        uploads: Those of this rank's clients, by client id.
        cohort: Ids of all clients that upload.
        commit: Receives the commit, shape (scalars that the exchange carries,), float32.

    Threads: the parts "deltas out", "serve" and "collect" may run on three threads at once.
    """

    def __init__(
        self,
        context: ExchangeContext,
        aggregator: Aggregator,
        round_index: int,
        block: int,
        uploads: Mapping[int, Upload],
        cohort: Sequence[int],
        commit: Tensor,
    ) -> None:
        self._members, self._settings, self._server = context.members, context.settings, context.server
        self._aggregator = aggregator
        self._round, self._block = round_index, block
        self._key, self._cohort = (round_index, block), frozenset(cohort)
        self._contributions = self._aggregator.contributions(self._key, uploads, self._cohort)
        self.commit = commit
        self._gradient_norm = 0.0
        self._start_s = self._ready_s = time.time()
        self._sent_bytes = {kind: 0 for kind in Kind}
        self._received_bytes = {kind: 0 for kind in Kind}
        bounds = chunks.shard_bounds(commit.numel(), self._members.n_ranks, self._settings.topology)
        self._mine = bounds[self._members.rank]
        size_bytes, topology = self._settings.chunk_bytes, self._settings.topology
        self._chunks = [list(chunks.chunks_of(shard, size_bytes, topology)) for shard in bounds]

    @property
    def n_steps(self) -> int:
        """Chunks of the longest shard."""
        return max(map(len, self._chunks))

    @property
    def n_serves(self) -> int:
        """Chunks of this rank's shard."""
        return len(self._chunks[self._members.rank])

    def finish(self) -> ExchangeFacts:
        """Note that the commit is complete; returns times and bytes."""
        sent, received = sum(self._sent_bytes.values()), sum(self._received_bytes.values())
        return ExchangeFacts(self._start_s, self._ready_s, time.time(), sent, received, self._gradient_norm)

    # --- deltas out ---------------------------------------------------------------------------------------------------

    def deltas_out(self, step: int) -> Iterator[tuple[int, int, slice]]:
        """(server's rank, sender, part) of the deltas to send, each rank beginning with the one after it."""
        rank, n_ranks = self._members.rank, self._members.n_ranks
        for peer in ((rank + distance) % n_ranks for distance in range(1, n_ranks)):
            for part in self._chunks[peer][step : step + 1]:
                for sender in self._contributions:
                    yield peer, sender, part

    def delta_bytes(self, part: slice, coder: Coder) -> int:
        """Payload of a delta's chunk."""
        return self._aggregator.contribution_bytes(self._key, part.stop - part.start, coder)

    def write_delta(self, message: Tensor, sender: int, part: slice, coder: Coder) -> None:
        """Fill in a sender's delta."""
        contribution = self._contributions[sender]
        contribution.write(part, payload(message), coder)
        said = {"weight": contribution.weight, "gradient_norm": contribution.gradient_norm}
        chunks.seal(message, self._header(Kind.DELTA, sender, part, message, **said))
        self._sent_bytes[Kind.DELTA] += message.numel()

    # --- serve --------------------------------------------------------------------------------------------------------

    def deltas_in(self, coder: Coder) -> list[list[Expected]]:
        """The messages expected for each chunk of this rank's shard."""
        return [
            [
                self._expected(peer, Kind.DELTA, sender, part, self.delta_bytes(part, coder))
                for peer in self._members.peers
                for sender in self._aggregator.senders(self._members.clients[peer], self._cohort)
            ]
            for part in self._chunks[self._members.rank]
        ]

    def begin_serving(self) -> None:
        """Before the first chunk, once the commits of the exchanges before it are done."""
        self._aggregator.begin(self._server, self._key)

    def part_served(self, step: int) -> slice:
        """The carried scalars that a step serves."""
        return self._chunks[self._members.rank][step]

    def commit_bytes(self, part: slice, coder: Coder) -> int:
        """Payload of a commit's chunk."""
        return self._aggregator.commit_bytes(self._key, part.stop - part.start, coder)

    def serve(self, step: int, arrived: Arrived, message: Tensor, coder: Coder) -> None:
        """Sum the deltas of a chunk, commit it, and fill in the message for the other ranks."""
        part = self.part_served(step)
        received = {sender: _here(one, part, coder) for sender, one in self._contributions.items()}
        for expected, delta in arrived:
            header = self._opened(expected, delta)
            received[header.sender] = self._received(header, delta, part, coder)
        if step == 0:
            self._ready_s = time.time()
        aggregate = self._aggregator.aggregate(self._key, received, part)
        self._gradient_norm = aggregate.gradient_norm
        within = slice(part.start - self._mine.start, part.stop - self._mine.start)
        body = payload(message)
        on_host = torch.empty_like(body, device="cpu") if body.is_cuda else body
        self._put(part, self._aggregator.commit(self._server, self._key, within, aggregate, on_host))
        if body.is_cuda:
            body.copy_(on_host)
        since_ready_us = max(0, int(1e6 * (time.time() - self._ready_s)))
        said = {"since_ready_us": since_ready_us, "gradient_norm": self._gradient_norm}
        chunks.seal(message, self._header(Kind.COMMIT, self._members.rank, part, message, **said))
        self._sent_bytes[Kind.COMMIT] += message.numel() * len(self._members.peers)

    # --- collect ------------------------------------------------------------------------------------------------------

    def commits_in(self, coder: Coder) -> list[list[Expected]]:
        """The messages expected from the other servers, step by step."""
        return [
            [
                self._expected(peer, Kind.COMMIT, peer, part, self.commit_bytes(part, coder))
                for peer in self._members.peers
                for part in self._chunks[peer][step : step + 1]
            ]
            for step in range(max((len(self._chunks[peer]) for peer in self._members.peers), default=0))
        ]

    def collect(self, arrived: Arrived, coder: Coder) -> None:
        """Write the other servers' chunks into the commit."""
        for expected, message in arrived:
            header = self._opened(expected, message)
            if not self.n_serves and self._ready_s == self._start_s:
                # A rank that serves nothing learns from the first commit when the slowest client had submitted.
                self._ready_s = max(self._start_s, time.time() - header.since_ready_us / 1e6)
            part, self._gradient_norm = expected.part, header.gradient_norm
            self._put(part, self._aggregator.read_commit(self._key, part, payload(message), coder))

    def _put(self, part: slice, values: Tensor | None) -> None:
        if values is not None:
            self.commit[part] = values

    # --- messages -----------------------------------------------------------------------------------------------------

    def _header(self, kind: Kind, sender: int, part: slice, message: Tensor, **said: Any) -> Header:
        length_bytes = payload(message).numel()
        return Header(
            kind, self._members.generation, self._round, self._block, sender, part.start, length_bytes, **said
        )

    def _expected(self, rank: int, kind: Kind, sender: int, part: slice, length_bytes: int) -> Expected:
        header = Header(kind, self._members.generation, self._round, self._block, sender, part.start, length_bytes)
        return Expected(rank, header, part)

    def _opened(self, expected: Expected, message: Tensor) -> Header:
        self._received_bytes[expected.header.kind] += message.numel()
        try:
            return chunks.unseal(message, expected.header)
        except ProtocolError as error:
            raise ProtocolError(f"from {self._members.describe(expected.rank)}: {error}") from error

    def _received(self, header: Header, message: Tensor, part: slice, coder: Coder) -> Received:
        """What a message contains of a sender's delta."""
        scalars = part.stop - part.start
        return Received(
            header.weight, header.gradient_norm, lambda: self._aggregator.read(payload(message), scalars, coder)
        )


def facts_of(stages: Sequence[ExchangeSteps]) -> ExchangeFacts:
    """Note that the last stage is complete; times and bytes of the whole exchange."""
    facts = [stage.finish() for stage in stages]
    sent, received = sum(one.upload_bytes for one in facts), sum(one.download_bytes for one in facts)
    return replace(facts[-1], ready_s=facts[0].ready_s, upload_bytes=sent, download_bytes=received)


def _here(one: Contribution, part: slice, coder: Coder) -> Received:
    """What a sender of this rank has for the server on this rank."""
    return Received(one.weight, one.gradient_norm, lambda: one.here(part, coder))
