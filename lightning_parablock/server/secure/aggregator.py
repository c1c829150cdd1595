"""The secure mean: whole numbers, masked per site, whose sum alone a server can read.

    exchange of a block           messages of its stages
    whose scale is known          values and facts; back: the sum, or W, and the facts
    whose scale is not            facts; back: their sums. Then values; back: the sum, or W

All ranks know the scale of a block from the same commit, at the same time of the common clock (:meth:`settle`), so all
send the same stages. A server reads nothing but sums over all clients of the exchange.

With federated averaging, no compression and float32 parameters a commit is the sum of the whole numbers, from which
every rank computes the same W: as few bytes as a contribution. Otherwise it is what the option ``compression`` says.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.masking.opening import check_opened
from lightning_parablock.masking.quantize import dequantize
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregate, Aggregator, Contribution, Received, Uploads
from lightning_parablock.server.secure.exchange import SecureExchange
from lightning_parablock.server.secure.layout import Layout, layout_of
from lightning_parablock.server.secure.site import FACTS, Masking, SitePayload, SiteValues
from lightning_parablock.server.secure.told import MergedScales, Scales
from lightning_parablock.server.shard import ServerShard


@dataclass(frozen=True)
class Hosts:
    """Which site hosts which clients.

    Attributes:
        sites: Name of each rank's site.
        clients: Ids of the clients that each rank hosts.
        rank: This rank.
    """

    sites: Sequence[str]
    clients: Sequence[Sequence[int]]
    rank: int = 0

    @property
    def own_clients(self) -> Sequence[int]:
        """Those that this rank hosts."""
        return self.clients[self.rank]

    def of(self, cohort: Collection[int]) -> tuple[str, ...]:
        """The sites that host some of these clients."""
        return tuple(
            s for s, hosted in zip(self.sites, self.clients, strict=True) if not set(cohort).isdisjoint(hosted)
        )


@dataclass(frozen=True)
class _Opened(Aggregate):
    """A part whose sum is read; ``payload`` holds the sums in the layout of a contribution."""

    payload: Tensor


class _SiteMessages(Aggregator):
    """What both stages share: one message per site, whose parts are added up in the ring."""

    def __init__(self, exchanges: dict[Key, SecureExchange], ring: Ring, *, has_values: bool) -> None:
        self._exchanges, self._ring, self._has_values = exchanges, ring, has_values
        self._sums = torch.empty(0, dtype=torch.uint8, device="cpu")

    @override
    def senders(self, hosted: Sequence[int], cohort: Collection[int]) -> list[int]:
        return sorted(client for client in hosted if client in cohort)[:1]

    @override
    def contribution_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        return self._layout(key, scalars).size_bytes

    @override
    def read(self, payload: Tensor, scalars: int, coder: Coder) -> Tensor:
        return payload.cpu()

    def _has_facts(self, key: Key) -> bool:
        return self._exchanges[key].is_first != self._has_values

    def _layout(self, key: Key, scalars: int) -> Layout:
        body_bytes = self._ring.bytes_per_value * scalars if self._has_values else 0
        return layout_of(body_bytes, scalars, has_facts=self._has_facts(key))

    def _opened(self, key: Key, received: Mapping[int, Received], part: slice) -> tuple[Layout, Tensor]:
        layout = self._layout(key, part.stop - part.start)
        total = self._buffer(layout.size_bytes).zero_()
        for sender in sorted(received):
            payload = received[sender].read()
            self._ring.add(self._values(layout, total), self._values(layout, payload))
            FACTS.add(layout.facts(total), layout.facts(payload))
        if self._has_facts(key):
            self._exchanges[key].learn(part, layout.facts(total))
        return layout, total

    def _values(self, layout: Layout, payload: Tensor) -> Tensor:
        return self._ring.signed(layout.body(payload))

    def _buffer(self, size_bytes: int) -> Tensor:
        if self._sums.numel() < size_bytes:
            self._sums = torch.empty(size_bytes, dtype=torch.uint8, device="cpu")
        return self._sums[:size_bytes]


class _Facts(_SiteMessages):
    """The stage before the values of a block of which no commit has told the scale."""

    def __init__(self, exchanges: dict[Key, SecureExchange], sites: dict[Key, SiteValues], ring: Ring) -> None:
        super().__init__(exchanges, ring, has_values=False)
        self._sites = sites

    @override
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        site = self._sites.get(key)
        return {} if site is None else {min(uploads): SitePayload(site, has_values=False, has_facts=True)}

    @override
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        _, total = self._opened(key, received, part)
        return _Opened(total[:0], math.nan, total)

    @override
    def begin(self, server: ServerShard, key: Key) -> None:
        """The server is not concerned."""

    @override
    def commit_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        return self._layout(key, scalars).size_bytes

    @override
    def commit(self, server: ServerShard, key: Key, within: slice, aggregate: Aggregate, payload: Tensor) -> None:
        assert isinstance(aggregate, _Opened)
        payload.copy_(aggregate.payload)

    @override
    def read_commit(self, key: Key, part: slice, payload: Tensor, coder: Coder) -> None:
        self._exchanges[key].learn(part, self._layout(key, part.stop - part.start).facts(payload))


class SecureAggregator(_SiteMessages):
    """The mean of whole numbers, of which a server sees the sum over all clients and no other.

    Args:
        bytes_per_value: B: 1 or 2.
        numels: Scalars of each block.
        hosts: Who hosts whom.
        masks: Hides this site's numbers.
        server: This rank's shard.
        scales: What exchanges make their steps from; None for those of a run with fixed members.
    """

    works_ahead = True

    def __init__(
        self,
        bytes_per_value: int,
        numels: Sequence[int],
        hosts: Hosts,
        masks: Masking,
        server: ServerShard,
        scales: Scales | None = None,
    ) -> None:
        super().__init__({}, Ring(bytes_per_value), has_values=True)
        self._numels, self._hosts, self._masks = numels, hosts, masks
        self._optimizer, self._sends_sums = server.optimizer, server.can_be_followed
        self._sites: dict[Key, SiteValues] = {}
        self._facts = _Facts(self._exchanges, self._sites, self._ring)
        self._scales: Scales = MergedScales() if scales is None else scales

    # --- an exchange begins and ends ----------------------------------------------------------------------------------

    @override
    def stages(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> tuple[Aggregator, ...]:
        sites, numel = self._hosts.of(cohort), self._numels[key[1]]
        scale = self._scales.of(key)
        exchange = SecureExchange(key, numel, cohort, sites, self._ring, scale, self._masks.min_sites)
        self._exchanges[key] = exchange
        if uploads:
            self._sites[key] = SiteValues(exchange, uploads, self._masks)
        return (self._facts, self) if exchange.is_first else (self,)

    @override
    def prepare(self, key: Key, cohort: Collection[int]) -> None:
        if not set(self._hosts.own_clients).isdisjoint(cohort):
            width = self._ring.bytes_per_value
            self._masks.prepare(*key, "values", self._numels[key[1]], width, self._hosts.of(cohort))

    @override
    def settle(self, round_index: int) -> None:
        for key in [key for key in self._exchanges if key[0] == round_index]:
            self._scales.settle(key, self._exchanges.pop(key).told())
            self._sites.pop(key, None)
        self._masks.close_rounds(round_index + 1)

    @override
    def state(self) -> list[list[Any]]:
        """[block, round, sums of l_i, clients]: the next exchange's scale, and those of exchanges in flight."""
        return self._scales.state({key: exchange.scale for key, exchange in self._exchanges.items()})

    @override
    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        self._scales.load_state(state)

    @override
    def told(self, key: Key) -> Scale | None:
        exchange = self._exchanges.get(key)
        return None if exchange is None else exchange.told()

    # --- values -------------------------------------------------------------------------------------------------------

    @override
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        site = self._sites.get(key)
        if site is None:
            return {}
        return {min(uploads): SitePayload(site, has_values=True, has_facts=self._has_facts(key))}

    @override
    @torch.no_grad()
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        exchange = self._exchanges[key]
        layout, total = self._opened(key, received, part)
        sums = self._values(layout, total)
        check_opened(sums, exchange.n_clients, exchange.limit, exchange.describe(part))
        return _Opened(self._mean(exchange, part, sums), math.nan, total)

    def _mean(self, exchange: SecureExchange, part: slice, sums: Tensor) -> Tensor:
        mean = torch.empty(part.stop - part.start, dtype=torch.float32, device="cpu")
        if not exchange.total_weight:
            return mean.zero_()
        return dequantize(sums, exchange.steps_of(part), mean).div_(exchange.total_weight)

    # --- commits ------------------------------------------------------------------------------------------------------

    @override
    def brings_increment(self, server: ServerShard) -> bool:
        return self._sends_sums or super().brings_increment(server)

    @override
    def commit_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        return self._commit_layout(key, scalars, coder).size_bytes

    @override
    def commit(self, server: ServerShard, key: Key, within: slice, aggregate: Aggregate, payload: Tensor) -> Tensor:
        assert isinstance(aggregate, _Opened)
        scalars = within.stop - within.start
        if self._sends_sums:
            payload.copy_(aggregate.payload)
            return server.follow(*key, within, aggregate.mean)
        layout = layout_of(server.commit_bytes(scalars), scalars, has_facts=self._has_facts(key))
        layout.fill_up(payload)
        layout.facts(payload).copy_(self._layout(key, scalars).facts(aggregate.payload))
        return server.commit(*key, within, aggregate.mean, layout.body(payload))

    @override
    def read_commit(self, key: Key, part: slice, payload: Tensor, coder: Coder) -> Tensor:
        exchange, scalars = self._exchanges[key], part.stop - part.start
        layout = self._commit_layout(key, scalars, coder)
        if self._has_facts(key):
            exchange.learn(part, layout.facts(payload))
        if not self._sends_sums:
            return coder.decode(layout.body(payload), scalars)
        sums = self._values(layout, payload)
        check_opened(sums, exchange.n_clients, exchange.limit, exchange.describe(part))
        mean, lr = self._mean(exchange, part, sums), self._optimizer.lr_of(key[0])
        return mean.mul_(lr) if lr != 1 else mean

    def _commit_layout(self, key: Key, scalars: int, coder: Coder) -> Layout:
        if self._sends_sums:
            return self._layout(key, scalars)
        return layout_of(coder.codec.payload_bytes(scalars), scalars, has_facts=self._has_facts(key))
