"""What sites send a server in secure mode, and what it commits."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_parablock.codecs.compression import NoCompression
from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.errors import SecureSumError, TooFewSitesError
from lightning_parablock.server.aggregation import Received
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.secure.layout import A_SITE
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import ServerSGD
from tests.fuzz.target import Target

_SIZE, _COHORT = 1500, range(3)
_WHOLE, _LATER = slice(0, _SIZE), (1, 0)


class _NoMasks:
    """The sums of what arrives are read; nothing is sent."""

    min_sites = 3

    def apply(self, *part: object) -> None:
        """Unused."""

    def prepare(self, *exchange: object) -> None:
        """Unused."""

    def close_rounds(self, before: int) -> None:
        """Nothing to forget."""


def _aggregator(server: ServerShard) -> SecureAggregator:
    """Two rounds of a block under way, of which the first one has told the scale."""
    hosts = Hosts(("a", "b", "c"), ((0,), (1,), (2,)))
    made = SecureAggregator(1, [_SIZE], hosts, _NoMasks(), server)  # type: ignore[arg-type]
    made.load_state([[0, -1, torch.zeros(2, dtype=torch.int32), 3]])
    made.stages((0, 0), {}, _COHORT)
    return made


def _shard() -> ServerShard:
    return ServerShard(ServerSGD(), [torch.zeros(_SIZE)])


def _buffer(data: bytes, size_bytes: int) -> Tensor:
    """What has arrived in a buffer of a fixed size."""
    return torch.frombuffer(bytearray(data[:size_bytes].ljust(size_bytes, b"\0")), dtype=torch.uint8)


def _next_steps(aggregator: SecureAggregator) -> None:
    """What was told is used by the block's next exchange."""
    aggregator.settle(0)
    aggregator.stages(_LATER, {}, _COHORT)
    payload = torch.zeros(aggregator.contribution_bytes(_LATER, _SIZE, _CODER), dtype=torch.uint8)
    received = {client: Received(0, 0.0, lambda: payload) for client in _COHORT}
    assert bool(aggregator.aggregate(_LATER, received, _WHOLE).mean.isfinite().all())


_CODER = Coder(NoCompression())


def _commit(data: bytes) -> object:
    aggregator = _aggregator(_shard())
    payload = _buffer(data, aggregator.commit_bytes((0, 0), _SIZE, _CODER))
    moved = aggregator.read_commit((0, 0), _WHOLE, payload, _CODER)
    assert bool(moved.isfinite().all())
    _next_steps(aggregator)
    return moved


def _contribution(data: bytes) -> object:
    server = _shard()
    aggregator = _aggregator(server)
    payload = _buffer(data, aggregator.contribution_bytes((0, 0), _SIZE, _CODER))
    received = {0: Received(0, 0.0, lambda: aggregator.read(payload, _SIZE, _CODER))}
    aggregate = aggregator.aggregate((0, 0), received, _WHOLE)
    _next_steps(aggregator)
    return aggregate


def _seed(values: int, log: int, weight: int, clients: int) -> bytes:
    numbers = torch.full((_SIZE,), values, dtype=torch.int8).numpy().tobytes()
    trained = clients * (1 + A_SITE)
    return numbers + torch.tensor([log, log, weight, trained], dtype=torch.int32).numpy().tobytes()


_SEEDS = (_seed(0, 0, 0, 0), _seed(17, 3 << 16, 3, 3), _seed(-120, -7 << 16, 9, 3))
TARGETS = (
    Target("secure commit", _commit, (SecureSumError, TooFewSitesError), _SEEDS),
    Target("secure contribution", _contribution, (SecureSumError, TooFewSitesError), _SEEDS),
)
