"""A user's own data loaders: identical data sets are cut into one shard a client, different ones stay as they are.

The shards are fixed, seeded, disjoint and complete: a client sees the same samples in every epoch.
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, Sampler, SequentialSampler
from typing_extensions import override

from lightning_parablock.errors import DataError
from lightning_parablock.flat import bytes_of
from lightning_parablock.seeds import derive_seed

_PROBES = 16


@dataclass(frozen=True)
class Cutting:
    """Who this client is among all, and how shards are drawn.

    Attributes:
        client: Number of this client.
        seed: Of the shards and of the order within them.
        gather: Collects one string from every client, in client order; collective.
    """

    client: int
    seed: int
    gather: Callable[[str], Sequence[str]]


class ShardSampler(Sampler[int]):
    """Yields the indices of one shard, in a fresh seeded order each epoch where ``shuffle`` is set.

    Args:
        indices: The shard.
        shuffle: Whether the order changes with the epoch.
        seed: Of the orders.
    """

    def __init__(self, indices: Sequence[int], *, shuffle: bool, seed: int) -> None:
        self.indices = list(indices)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        self.epoch = epoch

    @override
    def __iter__(self) -> Iterator[int]:
        order = list(self.indices)
        if self.shuffle:
            random.Random(derive_seed(self.seed, "order of epoch", self.epoch)).shuffle(order)
        return iter(order)

    def __len__(self) -> int:
        return len(self.indices)


def shard_indices(n_samples: int, n_shards: int, shard: int, seed: int) -> list[int]:
    """Indices of one of ``n_shards`` disjoint shards whose sizes differ by at most one, ascending."""
    order = list(range(n_samples))
    random.Random(derive_seed(seed, "shards", n_samples)).shuffle(order)
    return sorted(order[shard::n_shards])


def cut_or_keep(loader: object, stage: RunningStage, cutting: Cutting) -> tuple[object, str]:
    """Apply the rule to one loader of the given stage; collective.

    Returns:
        The loader to use, and one sentence that says what was done.

    Raises:
        DataError: identical training sets with a sampler that cannot be cut, or fewer samples than clients.
    """
    prints = cutting.gather(dataset_fingerprint(loader))
    same = [client for client, other in enumerate(prints) if other == prints[cutting.client]]
    if len(same) == 1:
        return loader, "each client keeps its own data set: it differs from all others"
    what = f"clients {', '.join(map(str, same))} have identical data sets"
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return loader, f"{what} that cannot be indexed: each streams all of it; let the data set choose by client"
    if stage != RunningStage.TRAINING and not _can_be_cut(loader):
        return loader, f"{what} with a sampler of their own ({_sampler_name(loader)}): each client uses all of it"
    return cut(loader, stage, cutting, same), f"{what}: each takes one of {len(same)} fixed, disjoint shards"


def dataset_fingerprint(loader: object) -> str:
    """A hash over the size and some evenly spaced samples of a loader's data set; leaves random states as they are."""
    dataset = getattr(loader, "dataset", loader)
    try:
        size = len(dataset)  # type: ignore[arg-type]
    except TypeError:
        return f"{type(dataset).__qualname__} without a length"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        return f"{type(dataset).__qualname__} of {size} samples"
    digest = hashlib.sha256(str(size).encode())
    with isolate_rng(include_cuda=False):
        for probe in range(min(_PROBES, size)):
            index = probe * (size - 1) // max(1, min(_PROBES, size) - 1)
            # Random augmentation must give the same sample on every client.
            torch.manual_seed(index)
            random.seed(index)
            np.random.seed(index)
            digest.update(_sample_bytes(dataset[index]))  # type: ignore[index]
    return digest.hexdigest()


def _sample_bytes(sample: object) -> bytes:
    """Bytes that depend on the values of a sample alone."""
    if isinstance(sample, torch.Tensor):
        return f"{sample.dtype}{tuple(sample.shape)}".encode() + bytes_of(sample)
    if isinstance(sample, dict):
        return b"".join(repr(key).encode() + _sample_bytes(value) for key, value in sample.items())
    if isinstance(sample, (list, tuple)):
        return b"(" + b",".join(_sample_bytes(value) for value in sample) + b")"
    if isinstance(sample, (str, int, float, bool, bytes, type(None))):
        return repr(sample).encode()
    return pickle.dumps(sample)


def _can_be_cut(loader: DataLoader[object]) -> bool:
    plain_batches = loader.batch_sampler is None or type(loader.batch_sampler) is BatchSampler
    plain_order = isinstance(loader.sampler, SequentialSampler) or (
        isinstance(loader.sampler, RandomSampler) and not loader.sampler.replacement
    )
    return plain_batches and plain_order


def _sampler_name(loader: DataLoader[object]) -> str:
    sampler = loader.batch_sampler if type(loader.batch_sampler) is not BatchSampler else loader.sampler
    return type(sampler).__name__


def cut(loader: object, stage: RunningStage, cutting: Cutting, same: Sequence[int]) -> object:
    """One of as many fixed, disjoint shards of a loader's data set as there are clients that have the same one.

    Args:
        loader: Of the whole data set.
        stage: What it is for.
        cutting: Whose shard.
        same: The clients that share the data set, ascending.

    Raises:
        DataError: the loader has a sampler of its own or no indices, or fewer samples than clients.
    """
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset) or not _can_be_cut(loader):
        named = _sampler_name(loader) if isinstance(loader, DataLoader) else type(loader).__name__
        raise DataError(
            f"clients {', '.join(map(str, same))} have identical data sets, but the {stage.value} loader has a sampler "
            f"of its own ({named}), which cannot be cut into fixed shards; give each client its own data set, or pass "
            "Trainer(use_distributed_sampler=False) to let every client train on all of it"
        )
    size = len(loader.dataset)  # type: ignore[arg-type]
    if size < len(same):
        raise DataError(
            f"the {stage.value} data set has {size} samples for {len(same)} clients: every client needs at least one"
        )
    indices = shard_indices(size, len(same), same.index(cutting.client), cutting.seed)
    shuffle = isinstance(loader.sampler, RandomSampler)
    sampler = ShardSampler(indices, shuffle=shuffle, seed=derive_seed(cutting.seed, "client", cutting.client))
    return _update_dataloader(loader, sampler, mode=stage)
