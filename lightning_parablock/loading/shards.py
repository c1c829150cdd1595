"""A user's own data loaders: identical data sets are cut into one shard per client, different ones stay as they are.

The shards are fixed, seeded, disjoint and complete: a client sees the same samples in every epoch.
"""

from __future__ import annotations

import hashlib
import pickle
import random
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.seed import isolate_rng
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
)
from typing_extensions import override

from lightning_parablock.blocks.flat import bytes_of
from lightning_parablock.errors import DataError
from lightning_parablock.federation.collectives import Gather
from lightning_parablock.lightning_private.data import batch_sampler_of, with_sampler
from lightning_parablock.loading.lengths import length_of
from lightning_parablock.loading.row_accounts import RowAccount
from lightning_parablock.seeds import LocalSeed, derive_seed

_PROBES = 16


@dataclass(frozen=True)
class Cutting:
    """Who this client is among all, and how shards are drawn.

    Attributes:
        client: Number of this client.
        seed: Random seed of the shards, and, by way of ``local_seed``, of the order within them.
        gather: Collects a value from every client, in client order; collective.
        has_shard: Whether shards are made for this client, too: not for one that comes when others train already.
        local_seed: Seed of what this client draws for itself.
    """

    client: int
    seed: int
    gather: Gather
    has_shard: bool = True
    local_seed: LocalSeed = field(default_factory=LocalSeed)


class ShardSampler(Sampler[int]):
    """Yields the indices of one shard, in a fresh seeded order each epoch where ``shuffle`` is set.

    Args:
        indices: The shard.
        shuffle: Whether the order changes with the epoch.
        seed: Random seed of the orders.
    """

    def __init__(self, indices: Sequence[int], *, shuffle: bool, seed: int) -> None:
        self.indices = list(indices)
        self.shuffle = shuffle
        self.seed = seed
        self.epoch = 0

    @property
    def draws_order(self) -> bool:
        """Whether the order is drawn, from a seed that has the site's salt."""
        return self.shuffle

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
        The loader to use, and one sentence on what was done.

    Raises:
        DataError: identical training sets with a sampler that cannot be cut, or fewer samples than clients.
    """
    prints = cutting.gather(dataset_fingerprint(loader))
    if not is_comparable(loader):
        return loader, (
            f"a stream ({type(data_of(loader)).__name__}) cannot be indexed, nor compared with other clients' data: "
            "kept whole; where clients open the same stream, let its data set choose by client"
        )
    same = [client for client, other in enumerate(prints) if other == prints[cutting.client]]
    if len(same) == 1:
        return loader, "each client keeps its own data set: it differs from all others"
    if not cutting.has_shard:
        if stage != RunningStage.TRAINING:
            return loader, "a site that is new in the run uses all of its data"
        others = ", ".join(str(client) for client in same if client != cutting.client)
        raise DataError(
            f"this site is new in the run and has the training set of clients {others}, which they have cut into "
            "shards among themselves; give it data of its own, or start it together with them"
        )
    what, compared = f"clients {', '.join(map(str, same))} have identical data sets", _compared(loader)
    if not isinstance(loader, DataLoader):
        return loader, f"{what} in a {type(loader).__name__}, which cannot be cut: each uses all of it ({compared})"
    if stage != RunningStage.TRAINING and isinstance(order_of(loader), DistributedSampler):
        return loader, f"{what}: each uses the part that its DistributedSampler chooses ({compared})"
    if stage != RunningStage.TRAINING and not _can_be_cut(loader):
        return loader, f"{what} with a sampler of their own ({_sampler_name(loader)}): each client uses all of it"
    return cut(loader, stage, cutting, same), (
        f"{what}: each takes one of {len(same)} fixed, disjoint shards ({compared})"
    )


def data_of(loader: object) -> object:
    """The data set of a loader, or what stands in for one."""
    return getattr(loader, "dataset", loader)


def is_comparable(loader: object) -> bool:
    """Whether a loader's data can be compared with others': a stream cannot be read without being used up."""
    dataset = data_of(loader)
    return (
        length_of(dataset) is not None and not isinstance(dataset, IterableDataset) and hasattr(dataset, "__getitem__")
    )


def dataset_fingerprint(loader: object) -> str:
    """A hash over the size and some evenly spaced samples of a loader's data set; leaves random states as they are.

    A data set with an attribute ``sha256`` has a hash of all of it. One that is dealt to a single client differs from
    all others, whatever is in it.
    """
    dataset, sampler = data_of(loader), getattr(loader, "sampler", None)
    if getattr(sampler, "is_of_one_client", False):
        return f"of client {getattr(sampler, 'client_id', None)} alone"
    size = length_of(dataset)
    if size is None or not is_comparable(loader):
        return f"{type(dataset).__qualname__} of {'unknown length' if size is None else f'{size} samples'}"
    if isinstance(of_all := getattr(dataset, "sha256", None), str):
        return of_all
    n_probes = min(_PROBES, size)
    return hash_of_samples(dataset, size, [probe * (size - 1) // max(1, n_probes - 1) for probe in range(n_probes)])


def hash_of_samples(dataset: Any, size: int, indices: Iterable[int]) -> str:
    """A hash over the size of a data set and some of its samples; leaves random states as they are."""
    digest = hashlib.sha256(str(size).encode())
    with isolate_rng(include_cuda=False):
        for index in indices:
            # Random augmentation must give the same sample on every client.
            torch.manual_seed(index)
            random.seed(index)
            np.random.seed(index)
            digest.update(_sample_bytes(dataset[index]))
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


def _compared(loader: object) -> str:
    dataset = data_of(loader)
    if isinstance(getattr(dataset, "sha256", None), str):
        return "compared whole"
    return f"compared by size and {min(_PROBES, length_of(dataset) or 0)} samples"


def order_of(loader: DataLoader[Any]) -> Any:
    """The sampler of single samples, also where a batch sampler has it."""
    batches = batch_sampler_of(loader)
    return batches.sampler if isinstance(batches, BatchSampler) else loader.sampler


def _can_be_cut(loader: DataLoader[Any]) -> bool:
    batches, order = batch_sampler_of(loader), order_of(loader)
    plain_order = isinstance(order, SequentialSampler) or (isinstance(order, RandomSampler) and not order.replacement)
    return plain_order and (batches is None or type(batches) is BatchSampler)


def _sampler_name(loader: DataLoader[Any]) -> str:
    batches = batch_sampler_of(loader)
    return type(batches if batches is not None and type(batches) is not BatchSampler else order_of(loader)).__name__


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
    if not isinstance(loader, DataLoader) or not is_comparable(loader) or not _can_be_cut(loader):
        raise DataError(_why_not_cut(loader, stage, f"clients {', '.join(map(str, same))}"))
    size = len(loader.dataset)  # type: ignore[arg-type]
    if size < len(same):
        raise DataError(
            f"the {stage.value} data set has {size} samples for {len(same)} clients: every client needs at least one"
        )
    indices = shard_indices(size, len(same), same.index(cutting.client), cutting.seed)
    shuffle = isinstance(order_of(loader), RandomSampler)
    seed = derive_seed(cutting.local_seed.of(cutting.seed), "client", cutting.client)
    sampler = ShardSampler(indices, shuffle=shuffle, seed=seed)
    return with_sampler(loader, sampler, stage)


def _why_not_cut(loader: object, stage: RunningStage, who: str) -> str:
    if not is_comparable(loader):
        return (
            f"{who} share a stream ({type(data_of(loader)).__name__}), which cannot be cut; give the data module "
            "or the module a method client_dataloader(client) that opens each client's own"
        )
    named = _sampler_name(loader) if isinstance(loader, DataLoader) else type(loader).__name__
    what = f"{who} have identical data sets ({_compared(loader)}), but the {stage.value} loader"
    if named == DistributedSampler.__name__:
        return (
            f"{what} has a sampler of its own ({named}); where that shuffles, it deals all samples out among all "
            "clients again in every epoch. Leave it out: the strategy cuts the data set into one fixed shard per "
            "client. Or keep it with Trainer(use_distributed_sampler=False)"
        )
    return (
        f"{what} has a sampler of its own ({named}), which cannot be cut into fixed shards; give each client its own "
        "data set, or pass Trainer(use_distributed_sampler=False) to let every client draw from all of it"
    )


def rows_line(name: str, loader: object) -> str | None:
    """One line that accounts for the rows of a client's training loader; None where its data module has done so.

    Args:
        name: The client in words.
        loader: As the client trains on it, cut or whole.
    """
    if getattr(getattr(loader, "sampler", None), "is_of_one_client", False):
        return None
    size = length_of(data_of(loader))
    if not isinstance(loader, DataLoader) or not is_comparable(loader) or size is None:
        return f"{name}: everything that its {type(data_of(loader)).__name__} yields"
    batches, order = batch_sampler_of(loader), order_of(loader)
    used = length_of(order)
    if used is None or not (batches is None or type(batches) is BatchSampler):
        return f"{name}: those of {size} rows that its {_sampler_name(loader)} chooses"
    rest = used % batches.batch_size if batches is not None and batches.drop_last else 0
    notes = (f"{rest} of each epoch, too few for a batch (drop_last)",) if rest else ()
    line = RowAccount(name, size, used, notes=notes).line
    plain = isinstance(order, (SequentialSampler, RandomSampler, ShardSampler))
    return line if plain else f"{line}, chosen by {_sampler_name(loader)}"
