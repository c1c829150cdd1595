"""In which order a loader yields its samples, and whether a site's private salt changes it."""

from __future__ import annotations

import copy
from itertools import islice
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from lightning_parablock.lightning_private.data import batch_sampler_of
from lightning_parablock.loading.positioned import generators_of, seed_generators
from lightning_parablock.loading.shards import is_comparable, order_of
from lightning_parablock.random_state import Stream
from lightning_parablock.seeds import LocalSeed

_STREAMS = 4
_MOST_BATCHES = 4096


def draw_locally(loader: object, local_seed: LocalSeed) -> None:
    """Let a sampler that draws its order from a seed of its own, apart from the random stream, draw it from ours."""
    sampler: Any = getattr(loader, "sampler", None)
    if hasattr(sampler, "local_seed"):
        sampler.local_seed = local_seed


def draws_order(loader: object) -> bool | None:
    """Whether a loader yields its samples in an order that it draws anew; None where that is not known.

    A sampler with an attribute ``draws_order`` says so itself. Any other one is tried: it draws if its order follows
    from the state of the random generators of torch, numpy and Python, and from nothing else.
    """
    if not isinstance(loader, DataLoader) or not is_comparable(loader):
        return None
    batches, order = batch_sampler_of(loader), order_of(loader)
    if batches is None or type(batches) is BatchSampler:
        if isinstance(said := getattr(order, "draws_order", None), bool):
            return said
        if type(order) in (RandomSampler, SequentialSampler):
            return type(order) is RandomSampler
    drawn, again = ([first_batches(loader, seed) for seed in range(_STREAMS)] for _ in range(2))
    return any(order != drawn[0] for order in drawn) if drawn == again else None


def first_batches(loader: DataLoader[Any], seed: int) -> list[Any]:
    """The indices of a loader's first batches, or of its first samples where it makes none, in epoch 0.

    Args:
        loader: The loader, which is left as it is.
        seed: Of the random stream from which it draws.
    """
    batches = batch_sampler_of(loader)
    order: Any = copy.copy(loader.sampler if batches is None else batches)
    if "sampler" in getattr(order, "__dict__", {}):
        order.sampler = copy.copy(order.sampler)
    samplers: list[Any] = [order, getattr(order, "sampler", None)]
    for sampler in samplers:
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(0)
    generators = [(generator, generator.get_state()) for generator in generators_of(loader)]
    try:
        with Stream(seed).use():
            seed_generators((generator, 0) for generator, _ in generators)
            return [_plain(indices) for indices in islice(order, _MOST_BATCHES)]
    finally:
        for generator, state in generators:
            generator.set_state(state)


def _plain(indices: Any) -> Any:
    return list(map(int, indices)) if isinstance(indices, (list, tuple)) else indices
