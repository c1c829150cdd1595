"""The job that asks the planner's probe how fast the hosts' links are."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any, get_args

import torch
import torch.distributed as dist

from lightning_parablock.settings import Settings, Topology
from lightning_parablock.transport.link_probe import probe_links

LIMIT_S = 120.0


def probe(plan: Mapping[str, Any]) -> dict[str, tuple[int, float]]:
    """By topology: bytes to each peer, and the seconds that the exchange of so many took; all hosts take part."""
    dist.init_process_group("gloo", timeout=timedelta(seconds=LIMIT_S))
    try:
        return {topology: _sample(topology) for topology in get_args(Topology)}
    finally:
        dist.destroy_process_group()


def _sample(topology: Topology) -> tuple[int, float]:
    chunk_bytes = Settings().chunk_bytes
    sample = probe_links(
        topology, backend="gloo", device=torch.device("cpu"), chunk_bytes=chunk_bytes, timeout_s=LIMIT_S
    )
    return sample.pair_bytes, sample.elapsed_s
