"""The job of bench_codecs: how fast one thread encodes and decodes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.clock import timed
from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.settings import COMPRESSIONS

PART_SCALARS = 262_144
PARTS = 40
"""Enough to exceed the caches, like a real block."""


def speed(plan: Mapping[str, Any]) -> dict[str, dict[str, list[float]]]:
    """GB of float32 per second by codec and direction, one value per repeat; a plain copy is called ``copy``.

    Args:
        plan: ``repeats``: passes over all codecs, not counting a first one for warm-up.
    """
    torch.set_num_threads(1)
    values = 1e-3 * torch.randn(PARTS, PART_SCALARS, generator=torch.Generator().manual_seed(0))
    into = torch.empty_like(values)
    works = {"copy": {"encode": _each(values, into, lambda v, i: i.copy_(v))}}
    codecs = {name: kind() for name, kind in COMPRESSIONS.items()}
    for name, chosen in codecs.items():
        if chosen.of_values is chosen:  # else it is about whole matrices: benchmarks/codecs/low_rank.py
            works[name] = _codec_works(chosen, values, into)
    seconds = [_pass(works) for _ in range(1 + plan["repeats"])][1:]
    gigabytes = 4 * values.numel() / 1e9
    return {
        name: {direction: [gigabytes / one[name][direction] for one in seconds] for direction in work}
        for name, work in works.items()
    }


def _codec_works(compression: Any, values: Tensor, into: Tensor) -> dict[str, Callable[[], None]]:
    codec = codec_of(compression)
    payloads = torch.empty(PARTS, codec.payload_bytes(PART_SCALARS), dtype=torch.uint8)
    return {"encode": _each(values, payloads, codec.encode), "decode": _each(payloads, into, codec.decode)}


def _each(sources: Tensor, targets: Tensor, work: Callable[[Tensor, Tensor], Any]) -> Callable[[], None]:
    def run() -> None:
        for source, target in zip(sources, targets, strict=True):
            work(source, target)

    return run


def _pass(works: Mapping[str, Mapping[str, Callable[[], None]]]) -> dict[str, dict[str, float]]:
    """Seconds of each work, one after the other."""
    return {name: {direction: timed(run) for direction, run in work.items()} for name, work in works.items()}
