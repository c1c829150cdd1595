"""The job of bench_scale: the planner's probe measures the hosts' links."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, get_args

from lightning_parablock.cli.commands.probe import probe_group, timed_links
from lightning_parablock.settings import Settings, Topology


def probe(plan: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Topology -> the rates of :class:`Links`; all hosts take part."""
    with probe_group() as n_ranks:
        return {
            topology: asdict(timed_links(topology, n_ranks, Settings().chunk_bytes)) for topology in get_args(Topology)
        }
