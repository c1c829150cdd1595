"""The transport of a single rank: its server is at hand, an exchange is over as soon as it is submitted."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.server.shard import ServerShard, mean_norm
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
    """Aggregates on the spot; moves no byte."""

    def __init__(self, server: ServerShard) -> None:
        super().__init__(server)
        self._coder = Coder(server.compression)

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        start_s = time.time()
        self._server.begin(round_index, block)
        ordered = [uploads[client] for client in cohort]
        whole = slice(0, self._server.values[block].numel())
        deltas = (self._coder.as_received(upload.delta, upload.residual, whole) for upload in ordered)
        unsent = torch.empty(self._coder.codec.payload_bytes(whole.stop), dtype=torch.uint8)
        weights = [upload.weight for upload in ordered]
        commit = self._server.commit(round_index, block, whole, deltas, weights, unsent)
        norm = mean_norm([upload.gradient_norm for upload in ordered], weights)
        return _Done(
            commit.to(ordered[0].delta.device, copy=True), start_s, norm, brings_increment=self._coder.is_lossy
        )

    @override
    def check(self, round_index: int, block: int) -> None:
        """A single rank has no peer to lose."""

    @override
    def note_step(self, round_index: int) -> None:
        """There is no other rank to tell."""

    @override
    def announce_end(self, rounds: int) -> None:
        """There is nobody to tell."""

    @override
    def close(self) -> None:
        """Nothing is open."""
