"""The probe of ``lightning-parablock plan --probe``: step times and links of the machines it is started on.

Started alone it measures the machine; under torchrun every rank measures, then they time exchanges over gloo, and the
slowest rank and the slowest link count for all.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, get_args

import torch

from lightning_parablock.errors import ConfigurationError, ParaBlockError, PeerError
from lightning_parablock.launching.launched import launched_ranks
from lightning_parablock.meeting.addresses import LOOPBACK, own_address
from lightning_parablock.meeting.default_group import gather_objects, opened_default_group, own_rank
from lightning_parablock.meeting.devices import open_listeners
from lightning_parablock.models.speed import Speed, Step, measure_speed
from lightning_parablock.planning.timing import Links, links_of
from lightning_parablock.settings import Topology
from lightning_parablock.transport.link_probe import probe_links

BUDGET_S = 20.0
"""For local steps."""
MEET_LIMIT_S = 300.0
"""For a rank to start, to measure its steps, and to take part in an exchange."""


@dataclass(frozen=True)
class Probed:
    """What the ranks have measured together; the same on all.

    Attributes:
        speeds: Of each rank.
        links: Goodput of the slowest link; None where there is one rank.
    """

    speeds: list[Speed]
    links: Links | None

    @property
    def slowest(self) -> Speed:
        """The rank that all wait for."""
        return min(self.speeds, key=lambda speed: speed.flop_per_s)


def probe(config: Any, step: Step, chunk_bytes: int) -> Probed:
    """Measure; collective where there are several ranks.

    Args:
        config: transformers' configuration of the model.
        step: What a local step trains on.
        chunk_bytes: Of a message.

    Raises:
        ConfigurationError: the model does not fit into this machine's memory, however much it is cut.
        PeerError: a rank did not come, was lost, or took too long.
    """
    if launched_ranks() == 1:
        return Probed([measure_speed(config, step, BUDGET_S)], None)
    with probe_group() as n_ranks:
        speeds = _speeds(config, step)
        rates = {topology: timed_links(topology, n_ranks, chunk_bytes) for topology in get_args(Topology)}
    return Probed(speeds, Links(rates["sharded"].client_bps, rates["star"].server_bps))


def _speeds(config: Any, step: Step) -> list[Speed]:
    """Every rank's speed; where one cannot measure, the same error on all."""
    try:
        own: Speed | str = measure_speed(config, step, BUDGET_S)
    except ConfigurationError as error:
        own = f"rank {own_rank()} on {socket.gethostname()}: {error}"
    found = gather_objects(own)
    problem = next((each for each in found if isinstance(each, str)), None)
    if problem is not None:
        raise ConfigurationError(problem)
    return [each for each in found if isinstance(each, Speed)]


def timed_links(topology: Topology, n_ranks: int, chunk_bytes: int) -> Links:
    """The rates that a timed exchange in a topology's pattern gives; collective, in :func:`probe_group`."""
    cpu = torch.device("cpu")
    sample = probe_links(topology, backend="gloo", device=cpu, chunk_bytes=chunk_bytes, timeout_s=MEET_LIMIT_S)
    return links_of(sample.pair_bytes, sample.elapsed_s, n_ranks, topology)


@contextmanager
def probe_group() -> Generator[int]:
    """A process group for the probe; gives the number of ranks. Raises PeerError where one does not come through."""
    try:
        one_host = os.environ.get("LOCAL_WORLD_SIZE") == os.environ.get("WORLD_SIZE")
        open_listeners(own_address(os.environ.get("MASTER_ADDR", LOOPBACK), one_host=one_host), None)
        with opened_default_group(MEET_LIMIT_S) as n_ranks:
            yield n_ranks
    except ParaBlockError:
        raise
    except RuntimeError as error:  # what gloo and the store raise when a rank is lost or late
        reason = (str(error).splitlines() or [""])[0]
        raise PeerError(f"the probe's clients did not all come through within {MEET_LIMIT_S:g} s: {reason}") from error
