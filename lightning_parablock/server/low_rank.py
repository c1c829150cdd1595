"""Exchanges that carry factors of a block's matrices: the mean of the factors is the factor of the mean.

All ranks know the bases of an exchange from the commits that count when it is submitted (:meth:`settle`), so all send
factors of the same lengths. A server has nothing to do but to add them up: from the mean of the factors each rank
computes the same W, with a server of its own for the whole model.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.codecs.low_rank import Bases, FactorLayout
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregate, Aggregator, Contribution, MeanAggregator, Uploads
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload

_SETTLED = -1


@dataclass
class Factors:
    """What a client sends of its delta; computed when the first part is asked for, on a communication thread."""

    upload: Upload
    layout: FactorLayout
    bases: Bases
    decay: float
    _sent: Tensor | None = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def weight(self) -> int:
        """n_i of the mean."""
        return self.upload.weight

    @property
    def gradient_norm(self) -> float:
        """Of the block at the client's first local step."""
        return self.upload.gradient_norm

    def write(self, part: slice, payload: Tensor, coder: Coder) -> None:
        """See :class:`~lightning_parablock.server.aggregation.Contribution`."""
        coder.codec.encode(self._factors()[part], payload)

    def here(self, part: slice, coder: Coder) -> Tensor:
        """See :class:`~lightning_parablock.server.aggregation.Contribution`."""
        return self._factors()[part].cpu()

    @torch.no_grad()
    def _factors(self) -> Tensor:
        with self._lock:
            if self._sent is None:
                self._sent = self._project()
            return self._sent

    def _project(self) -> Tensor:
        delta, residual = self.upload.delta, self.upload.residual
        if residual is None:
            assert not self.upload.weight, "a client with weight keeps what its factors leave out"
            return delta.new_zeros(self.layout.carried(sends_left=self.bases.sends_left))

        def wanted(part: slice) -> Tensor:
            if residual.before is None:
                return delta[part].clone()
            values = residual.before[part].to(delta.device, copy=True)  # one copy, of the largest matrix at most
            if self.decay != 1:
                values *= self.decay
            return values.add_(delta[part])

        def leave(part: slice, values: Tensor) -> None:
            residual.after[part] = values.to("cpu")

        return self.layout.project(self.bases, wanted, leave, delta.device)


class LowRankAggregator(MeanAggregator):
    """The weighted mean of the clients' factors, of which every rank makes the new W of the whole block.

    Args:
        layouts: Of each block.
        decay: Share of what earlier messages left out that is added to the next one.
    """

    def __init__(self, layouts: Sequence[FactorLayout], decay: float) -> None:
        super().__init__()
        self._layouts, self._decay = layouts, decay
        self._bases: dict[int, Bases] = {}
        self._of: dict[Key, Bases] = {}
        self._next: dict[Key, Bases] = {}

    # --- an exchange begins and ends ----------------------------------------------------------------------------------

    @override
    def stages(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> tuple[Aggregator, ...]:
        block = key[1]
        if key not in self._of:  # else it was in flight when the run was stopped
            if block not in self._bases:
                self._bases[block] = self._layouts[block].first_bases(block)
            self._of[key] = self._bases[block]
        return (self,)

    @override
    def settle(self, round_index: int) -> None:
        for key in [key for key in self._of if key[0] == round_index]:
            del self._of[key]
            self._bases[key[1]] = self._next.pop(key)

    @override
    def state(self) -> list[list[Any]]:
        """[block, round, whether left factors are sent, bases]: of the next exchange, and of those in flight."""
        settled = {(_SETTLED, block): bases for block, bases in self._bases.items()}
        return [[key[1], key[0], bases.sends_left, list(bases.vectors)] for key, bases in (settled | self._of).items()]

    @override
    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        for block, round_index, sends_left, vectors in state:
            bases = Bases(sends_left, tuple(vectors))
            if round_index == _SETTLED:
                self._bases[block] = bases
            else:
                self._of[round_index, block] = bases

    # --- factors ------------------------------------------------------------------------------------------------------

    @override
    def carried_scalars(self, key: Key, numel: int) -> int:
        return self._layouts[key[1]].carried(sends_left=self._of[key].sends_left)

    @override
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        layout, bases = self._layouts[key[1]], self._of[key]
        return {client: Factors(upload, layout, bases, self._decay) for client, upload in sorted(uploads.items())}

    # --- commits ------------------------------------------------------------------------------------------------------

    @override
    def commit(self, server: ServerShard, key: Key, within: slice, aggregate: Aggregate, payload: Tensor) -> Tensor:
        payload.view(torch.float32).copy_(aggregate.mean)
        return aggregate.mean

    @override
    @torch.no_grad()
    def whole(self, server: ServerShard, key: Key, carried: Tensor) -> Tensor:
        (round_index, block), bases, layout = key, self._of[key], self._layouts[key[1]]
        brought = carried.cpu()
        self._next[key] = layout.next_bases(block, bases, brought)
        server.follow(round_index, block, slice(0, layout.numel), layout.expand(bases, brought))
        return server.values[block].clone()
