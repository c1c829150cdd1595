"""Data loaders made from a user's own, and the samplers that Lightning puts around theirs."""

from __future__ import annotations

import copy
import warnings
from typing import Any

from lightning.pytorch.overrides.distributed import _IndexBatchSamplerWrapper  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader  # pyright: ignore[reportPrivateUsage]
from torch.utils.data import DataLoader, Sampler


def with_sampler(loader: DataLoader[Any], sampler: Sampler[Any], stage: RunningStage) -> Any:
    """A new loader of the same class and options with another sampler.

    A subclass of DataLoader may take arguments of its own, which only Lightning has recorded. Without this, shards
    would lose a user's own loader class.
    """
    plain = copy.copy(loader)
    vars(plain)["batch_sampler"] = batch_sampler_of(loader)  # DataLoader forbids to set it
    return _update_dataloader(plain, sampler, mode=stage)


def batch_sampler_of(loader: DataLoader[Any]) -> Any:
    """The loader's batch sampler, without the wrapper in which Lightning notes the indices of predictions.

    Without this, the loader of predict would pass for one with a sampler of its own, which cannot be cut.
    """
    sampler: Any = loader.batch_sampler
    if isinstance(sampler, _IndexBatchSamplerWrapper):
        return sampler._batch_sampler  # pyright: ignore[reportPrivateUsage]
    return sampler


def silence_loader_warning() -> None:
    """Lightning warns of a loader that cannot be resumed; this strategy brings every loader to where it was.

    No private name, but a text of Lightning's; where it changes, users see a warning that does not apply.
    """
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")
