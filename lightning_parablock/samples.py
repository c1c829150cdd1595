"""How many samples a batch has: for weights by samples, and for what is told of a client."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.data import (
    _extract_batch_size,  # pyright: ignore[reportPrivateUsage]
    extract_batch_size,
)

from lightning_parablock.errors import ConfigurationError


def batch_samples(batch: Any) -> int:
    """Samples of a training batch: the first dimension of the first tensor in it, as Lightning's logging counts it.

    Raises:
        ConfigurationError: nothing in the batch is a tensor.
    """
    try:
        return extract_batch_size(batch)
    except MisconfigurationException as error:
        raise ConfigurationError(
            f"weighting='samples' cannot tell how many samples a batch of type {type(batch).__name__} has, since it "
            "contains no tensor; make it a tensor or a collection of tensors, or choose weighting='uniform'"
        ) from error


def samples_or_one(batch: Any) -> int:
    """The same where nothing rests on it: at least 1, without errors and warnings; an iterator is not touched."""
    if isinstance(batch, Iterator):
        return 1
    return max(1, next((size for size in _extract_batch_size(batch) if size is not None), 1))
