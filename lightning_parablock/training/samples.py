"""How many samples a batch has: for weights by samples, and for what is shown of a client."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from lightning_parablock.errors import ConfigurationError

HOOK = "parablock_batch_size"
"""A method of the LightningModule, ``parablock_batch_size(batch) -> int``, that counts the samples of a batch."""


def samples_of(batch: Any, module: Any, *, exact: bool) -> int:
    """Samples of a batch: what the module's method ``parablock_batch_size`` says, or else what the batch shows.

    Args:
        batch: As the step receives it.
        module: The LightningModule.
        exact: Whether anything rests on the number; else it is at least 1, whatever the batch is.

    Raises:
        ConfigurationError: the method returns no whole number >= 0, or ``exact`` and the samples cannot be counted.
    """
    hook = getattr(module, HOOK, None)
    if hook is None:
        return batch_samples(batch) if exact else samples_or_one(batch)
    count = hook(batch)
    if isinstance(count, bool) or not isinstance(count, int) or count < 0:
        raise ConfigurationError(f"{type(module).__name__}.{HOOK} must return a whole number >= 0, got {count!r}")
    return count


def batch_samples(batch: Any) -> int:
    """Samples of a training batch: the first dimension that all of its tensors and arrays have in common.

    Numbers and 0-dimensional tensors say nothing of it. A packed sequence, a batch of graphs (``num_graphs``) and
    whatever has a ``batch_size`` tell it themselves.

    Raises:
        ConfigurationError: nothing in the batch tells it, or its tensors disagree.
    """
    sizes = list(dict.fromkeys(_sizes(batch)))
    if len(sizes) == 1:
        return sizes[0]
    why = "it contains no tensor with a first dimension"
    if sizes:
        why = f"its tensors have different first dimensions ({', '.join(map(str, sizes))})"
    raise ConfigurationError(
        f"weighting='samples' cannot tell how many samples a batch of type {type(batch).__name__} has, since {why}; "
        f"give the LightningModule a method {HOOK}(batch) that returns the number, or choose weighting='uniform'"
    )


def samples_or_one(batch: Any) -> int:
    """The same where nothing rests on it: at least 1, without errors; an iterator is not touched."""
    return max(1, next(_sizes(batch), 1))


def _sizes(batch: Any) -> Iterator[int]:
    """The first dimension of every tensor and array in a batch, in order; what is consumed by reading is left alone."""
    if isinstance(batch, (Tensor, np.ndarray)):
        if batch.ndim:
            yield batch.shape[0]
    elif isinstance(batch, PackedSequence):
        yield int(batch.batch_sizes[0])
    elif (told := _told(batch)) is not None:
        yield told
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif isinstance(batch, Sequence) and not isinstance(batch, (str, bytes)):
        for value in batch:
            yield from _sizes(value)
    elif dataclasses.is_dataclass(batch) and not isinstance(batch, type):
        for field in dataclasses.fields(batch):
            yield from _sizes(getattr(batch, field.name))


def _told(batch: Any) -> int | None:
    """What the batch says of itself: graphs in PyTorch Geometric, ``batch_size`` in DGL, tensordict and others."""
    for name in ("num_graphs", "batch_size"):
        said = getattr(batch, name, None)
        if isinstance(said, tuple) and said:  # tensordict's is a shape
            said = said[0]
        if isinstance(said, int) and not isinstance(said, bool):
            return said
    return None
