"""The transport of a single rank: its server is local, so an exchange is complete as soon as it is submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.server.aggregation import Aggregator, MeanAggregator, Received
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.transport.base import Exchange, ExchangeFacts, Transport


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
    """Aggregates at once and moves no byte.

    Args:
        server: The whole model's server.
        aggregator: What it makes of the deltas; None for their mean.
    """

    def __init__(self, server: ServerShard, aggregator: Aggregator | None = None) -> None:
        super().__init__(server)
        self._coder = Coder(server.compression)
        self._aggregator = aggregator if aggregator is not None else MeanAggregator()

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        start_s, key = time.time(), (round_index, block)
        self._server.begin(round_index, block)
        whole = slice(0, self._server.values[block].numel())
        received = {
            sender: Received(one.weight, one.gradient_norm, lambda one=one: one.here(whole, self._coder))
            for sender, one in self._aggregator.contributions(key, uploads, cohort).items()
        }
        aggregate = self._aggregator.aggregate(key, received, whole)
        unsent = torch.empty(self._aggregator.commit_bytes(whole.stop, self._coder), dtype=torch.uint8)
        commit = self._aggregator.commit(self._server, key, whole, aggregate, unsent)
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
