"""The jobs of one host: a timed fit, and a fit on GSM8K in which saturated values are counted."""

from __future__ import annotations

import threading
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from benchmarks.harness import fits, gsm8k_job
from benchmarks.secure.arms import options_of
from lightning_parablock.server.aggregations import MeanAggregation
from lightning_parablock.server.secure import site
from lightning_parablock.strategy import ranks, session_host


@dataclass
class Saturation:
    """How many whole numbers this process has made, and how many of them were larger than the sum can hold."""

    values: int = 0
    saturated: int = 0


def fit(plan: Mapping[str, Any]) -> dict[str, Any]:
    """One timed fit, see :func:`benchmarks.harness.fits.fit`.

    Args:
        plan: That of ``fits.fit``, with ``arm`` and, for secure sums, ``folder`` of a federation.
    """
    with without_links():
        return fits.fit({**plan, "strategy": options_of(plan)})


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """One fit on GSM8K, see :func:`benchmarks.harness.gsm8k_job.train`, with ``values`` and ``saturated`` of this site.

    Args:
        plan: That of ``gsm8k_job.train``, with ``arm`` and, for secure sums, ``folder`` of a federation.
    """
    with counted() as count, figures_of_all(), without_links():
        found = gsm8k_job.train({**plan, "strategy": options_of(plan)})
    return found | {"values": count.values, "saturated": count.saturated}


@contextmanager
def without_links() -> Generator[None]:
    """Let the sites of a federation use the hosts' own links: what is measured is the secure sum, not WireGuard."""
    original = ranks.private_links
    ranks.private_links = lambda *_, **__: None  # type: ignore[assignment]
    try:
        yield
    finally:
        ranks.private_links = original


@contextmanager
def figures_of_all() -> Generator[None]:
    """Let the held-out loss be that of all sites' rows also with secure sums, in whose runs each site has its own."""
    original = session_host.OwnFigures
    session_host.OwnFigures = lambda aggregation: original(MeanAggregation())  # type: ignore[assignment, misc]
    try:
        yield
    finally:
        session_host.OwnFigures = original


@contextmanager
def counted() -> Generator[Saturation]:
    """Count what this process rounds to whole numbers. The strategy itself says so only where it is too much."""
    count, lock, original = Saturation(), threading.Lock(), site.quantize

    def quantize(u: Tensor, steps: Tensor, limit: int, into: Tensor) -> int:
        saturated = original(u, steps, limit, into)
        with lock:
            count.values += u.numel()
            count.saturated += saturated
        return saturated

    site.quantize = quantize
    try:
        yield count
    finally:
        site.quantize = original
