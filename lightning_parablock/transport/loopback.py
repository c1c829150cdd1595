"""The transport of a single rank: its server is local, so an exchange is complete as soon as it is submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregate, Aggregator, Received
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
        super().__init__(server, aggregator)
        self._coder = Coder(server.compression)

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        start_s, key = time.time(), (round_index, block)
        stages = self._aggregator.stages(key, uploads, cohort)
        carried = self._aggregator.carried_scalars(key, self._server.values[block].numel())
        own = torch.empty(carried, dtype=torch.float32)
        gradient_norm = [self._carry_out(stage, key, uploads, cohort, own).gradient_norm for stage in stages][-1]
        own = self._aggregator.whole(self._server, key, own)
        if cohort:
            own = own.to(uploads[cohort[0]].delta.device)
        return _Done(own, start_s, gradient_norm, brings_increment=self._aggregator.brings_increment(self._server))

    def _carry_out(
        self, stage: Aggregator, key: Key, uploads: Mapping[int, Upload], cohort: Sequence[int], into: Tensor
    ) -> Aggregate:
        stage.begin(self._server, key)
        whole = slice(0, into.numel())
        received = {
            sender: Received(one.weight, one.gradient_norm, lambda one=one: one.here(whole, self._coder))
            for sender, one in stage.contributions(key, uploads, cohort).items()
        }
        aggregate = stage.aggregate(key, received, whole)
        unsent = torch.empty(stage.commit_bytes(key, whole.stop, self._coder), dtype=torch.uint8)
        commit = stage.commit(self._server, key, whole, aggregate, unsent)
        if commit is not None:
            into.copy_(commit)
        return aggregate

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
