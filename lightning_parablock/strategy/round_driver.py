"""Tells the rounds of a fit where the trainer is: the callback that comes before all others.

It is the first so that at the end of a training batch the block has been switched before any other callback validates
or saves, and so that after an error no other callback first saves a checkpoint that waits for lost peers.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from typing_extensions import override

from lightning_parablock.callbacks.metrics import RoundMetrics
from lightning_parablock.strategy.session_host import SessionHost


class RoundDriver(Callback):
    """Starts, advances and finishes the rounds of one fit.

    Args:
        host: The strategy.
    """

    def __init__(self, host: SessionHost) -> None:
        self._host = host

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._host.start_rounds()

    @override
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._host.session.begin_batch()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._host.session.after_batch()

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._host.session.finish()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._host.rescue(exception)


def insert_driver(trainer: Trainer, host: SessionHost) -> None:
    """Put a driver before the callbacks of a fit, and the metrics of rounds unless the user has.

    Drivers of earlier runs of the trainer are removed.
    """
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    callbacks[:] = [callback for callback in callbacks if not isinstance(callback, RoundDriver)]
    if trainer.state.fn == TrainerFn.FITTING:
        if not any(isinstance(callback, RoundMetrics) for callback in callbacks):
            callbacks.insert(0, RoundMetrics())
        callbacks.insert(0, RoundDriver(host))
