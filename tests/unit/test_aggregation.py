"""The seam: transports carry what an aggregator writes, whoever the senders are and whatever the bytes mean."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import (
    Aggregate,
    Aggregator,
    Contribution,
    MeanAggregator,
    Received,
    Uploads,
)
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import ServerSGD
from lightning_parablock.transport.loopback import LoopbackTransport

SIZE = 3000


class _SiteSum:
    """One sender for all clients of a site; its bytes are the sum in float64."""

    weight, gradient_norm = 0, 0.0

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads

    def write(self, part: slice, payload: Tensor, coder: Coder) -> None:
        payload.view(torch.float64).copy_(self.here(part, coder))

    def here(self, part: slice, coder: Coder) -> Tensor:
        return torch.stack([one.delta[part].double() for one in self._uploads.values()]).sum(0)


class _SumAggregator(Aggregator):
    """Adds sites, in the domain of their payloads; a commit ends with a byte of its own."""

    def __init__(self) -> None:
        self.said: list[int] = []

    @override
    def contributions(self, key: Key, uploads: Uploads, cohort: Collection[int]) -> dict[int, Contribution]:
        return {min(uploads): _SiteSum(uploads)}

    @override
    def senders(self, hosted: Sequence[int], cohort: Collection[int]) -> list[int]:
        return [min(set(hosted) & set(cohort))]

    @override
    def contribution_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        return 8 * scalars

    @override
    def read(self, payload: Tensor, scalars: int, coder: Coder) -> Tensor:
        return payload.view(torch.float64)

    @override
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        total = torch.stack([one.read() for one in received.values()]).sum(0)
        return Aggregate(total.float(), 0.0)

    @override
    def commit_bytes(self, key: Key, scalars: int, coder: Coder) -> int:
        return super().commit_bytes(key, scalars, coder) + 1

    @override
    def commit(
        self, server: ServerShard, key: Key, within: slice, aggregate: Aggregate, payload: Tensor
    ) -> Tensor | None:
        payload[-1] = key[0]
        self.said.append(int(payload[-1]))
        return super().commit(server, key, within, aggregate, payload[:-1])


def uploads_of(*weights: int) -> dict[int, Upload]:
    generator = torch.Generator().manual_seed(1)
    return {client: Upload(torch.randn(SIZE, generator=generator), n) for client, n in enumerate(weights)}


def test_another_aggregator_needs_no_other_transport() -> None:
    aggregator = _SumAggregator()
    transport = LoopbackTransport(ServerShard(ServerSGD(), [torch.zeros(SIZE)]), aggregator)
    uploads = uploads_of(1, 1, 1)
    commit = transport.submit(7, 0, uploads, sorted(uploads)).wait(lambda: torch.zeros(SIZE))
    assert torch.equal(commit, torch.stack([one.delta.double() for one in uploads.values()]).sum(0).float())
    assert aggregator.said == [7]


def test_the_mean_takes_every_client_of_the_cohort_for_a_sender() -> None:
    uploads = uploads_of(3, 0, 2)
    mean = MeanAggregator()
    assert mean.senders([4, 6, 9], {9, 4, 5}) == [4, 9]
    contributions = mean.contributions((0, 0), dict(reversed(uploads.items())), uploads.keys())
    assert list(contributions) == [0, 1, 2]
    assert [one.weight for one in contributions.values()] == [3, 0, 2]
