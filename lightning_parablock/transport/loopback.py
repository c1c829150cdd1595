"""The transport of a single rank: its server is local, so an exchange is complete as soon as it is submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.server.aggregation import MeanAggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.transport.base import Exchange, ExchangeFacts, Transport, Upload


class _Done(Exchange):
    def __init__(self, commit: Tensor, start_s: float, gradient_norm: float, *, brings_increment: bool) -> None:
        super().__init__(brings_increment=brings_increment)
        self._commit = commit
        self._facts = ExchangeFacts(start_s, start_s, time.time(), 0, 0, gradient_norm)

    @override
    def _received(self) -> Tensor:
        return self._commit

    @property
    @override
    def facts(self) -> ExchangeFacts:
        return self._facts


class LoopbackTransport(Transport):
    """Aggregates at once and moves no byte."""

    def __init__(self, server: ServerShard) -> None:
        super().__init__(server)
        self._coder = Coder(server.compression)
        self._aggregator = MeanAggregator()

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        start_s = time.time()
        self._server.begin(round_index, block)
        whole = slice(0, self._server.values[block].numel())
        received = {client: uploads[client].received_here(whole, self._coder) for client in cohort}
        aggregate = self._aggregator.aggregate(received, whole.stop)
        unsent = torch.empty(self._coder.codec.payload_bytes(whole.stop), dtype=torch.uint8)
        commit = self._server.commit(round_index, block, whole, aggregate.mean, unsent)
        device = uploads[cohort[0]].delta.device if cohort else commit.device
        own = commit.to(device, copy=True)
        return _Done(own, start_s, aggregate.gradient_norm, brings_increment=self._coder.is_lossy)

    @override
    def check(self, round_index: int, block: int) -> None:
        """A single rank has no peer to lose."""

    @override
    def note_step(self, round_index: int) -> None:
        """There is no other rank to tell."""

    @override
    def announce_end(self, rounds: int) -> None:
        """There is no other rank to tell."""

    @override
    def close(self) -> None:
        """Nothing is open."""
