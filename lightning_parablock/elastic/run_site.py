"""A site with the exchanges of a fit: what the strategy works with in an elastic run."""

from __future__ import annotations

import torch
from typing_extensions import override

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.elastic.arbiter import Arbiter
from lightning_parablock.elastic.opening import committed_at, open_elastic
from lightning_parablock.elastic.seat import SiteOptions
from lightning_parablock.elastic.site import Site
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.elastic.view import SiteView
from lightning_parablock.errors import CallOrderError
from lightning_parablock.federation.joining import start_at
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.server.optimizers import ServerSGD
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport


class RunSite(Site, SiteView):
    """This process' site, with the exchanges of a fit.

    Args:
        options: How it takes part.
        arbiter: Says who is alive.
        host: Address at which the other sites reach this one.
        settings: The run's settings.
    """

    def __init__(self, options: SiteOptions, arbiter: Arbiter, host: str, settings: Settings) -> None:
        super().__init__(options, arbiter, host, settings.ports)
        self._transport: ElasticTransport | None = None

    @override
    def open_rounds(self, flat: FlatBlocks, settings: Settings, schedule: Schedule, device: torch.device) -> Transport:
        self._transport = open_elastic(self, flat, settings, schedule, device=device)
        return self._transport

    @override
    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        if self._transport is None:
            raise CallOrderError("open_rounds comes before begin_engine")
        committed = committed_at(self._transport, engine.schedule, engine.settings, round_index)
        first_round = self.log.records[0].first_round
        start_at(engine, round_index, dict(enumerate(committed)), first_round=first_round)


def site_options(settings: Settings, name: str) -> SiteOptions:
    """How a site takes part, as its settings say; ``lighthouse`` must be set."""
    assert settings.lighthouse is not None and settings.min_clients is not None
    return SiteOptions(
        site=name,
        lighthouse=settings.lighthouse,
        min_clients=settings.min_clients,
        rejoin_timeout_s=settings.rejoin_timeout_s,
        admit_every_rounds=settings.admit_every_rounds,
        silence_s=settings.silence_s,
        topology=settings.topology,
        has_server_state=settings.compression.is_lossy or not isinstance(settings.server_optimizer, ServerSGD),
    )
