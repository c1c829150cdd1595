"""The values by which every ModelCheckpoint decides what to keep: those of the first rank."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor

from lightning_parablock.errors import ProtocolError
from lightning_parablock.lightning_private.instances import replace_method

log = logging.getLogger(__name__)


def share_monitored_values(trainer: Trainer, from_first_rank: Callable[[Any], Any]) -> None:
    """Let every ModelCheckpoint decide and name its files by the metrics of the first rank.

    Without this, where a metric is each client's own, the clients would keep different checkpoints, each with a part of
    the state.

    Args:
        trainer: The trainer whose callbacks these are.
        from_first_rank: Returns the first rank's value; collective.
    """
    for callback in _model_checkpoints(trainer):
        _share_values(callback, from_first_rank)


def unshare_monitored_values(trainer: Trainer) -> None:
    """Undo :func:`share_monitored_values`: a callback may be used with another trainer."""
    for callback in _model_checkpoints(trainer):
        vars(callback).pop("_monitor_candidates", None)


def _model_checkpoints(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _share_values(callback: Any, from_first_rank: Callable[[Any], Any]) -> None:
    warned = set[str]()

    def monitor_candidates(trainer: Trainer) -> dict[str, Any]:
        own = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in type(callback)._monitor_candidates(callback, trainer).items()
        }
        shared: dict[str, Any] = from_first_rank(own)
        odd = [value for value in shared.values() if not isinstance(value, int | float | Tensor)]
        if odd:  # it would be part of a file's path
            raise ProtocolError(f"the first client sends {odd[0]!r:.40} as a metric by which checkpoints are kept")
        name = callback.monitor
        if name in own and name in shared and not _equal(own[name], shared[name]) and name not in warned:
            warned.add(name)
            log.warning(
                "parablock: ModelCheckpoint monitors %s, of which each client has a value of its own: the first "
                "client's decides; log it with sync_dist=True to use the mean",
                name,
            )
        return shared

    replace_method(callback, "_monitor_candidates", monitor_candidates)


def _equal(one: Any, other: Any) -> bool:
    values = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    return torch.allclose(*values, rtol=0, atol=0, equal_nan=True)
