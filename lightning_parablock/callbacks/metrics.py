"""Metrics of each finished round, logged under ``parablock/...`` without any collective."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.callbacks.gather import NewRecords
from lightning_parablock.callbacks.presence import membership_of
from lightning_parablock.callbacks.sight_figures import PREFIX
from lightning_parablock.records import RoundRecord

_FIELDS = ("round", "exposed_s", "wait_peer_s", "compute_s", "exchange_s", "upload_bytes", "download_bytes", "samples")


class RoundMetrics(Callback):
    """Writes one row per finished round to every logger and keeps the newest in ``trainer.callback_metrics``.

    Names: ``parablock/round`` (from 0), ``parablock/block`` (index in ``trainer.strategy.blocks``),
    ``parablock/exposed_s``, ``parablock/wait_peer_s``, ``parablock/compute_s``, ``parablock/exchange_s`` (seconds),
    ``parablock/upload_bytes`` and ``parablock/download_bytes``, ``parablock/samples`` and, where it is known,
    ``parablock/drift``, ``parablock/nonfinite`` in rounds that were left out of the mean, and ``parablock/dropped`` in
    rounds whose secure sum counts for nothing, since the members changed meanwhile; for their meaning see
    :class:`~lightning_parablock.records.RoundRecord`. The figures are those of this rank's first client in the round;
    loggers that write only on the first rank, as Lightning's do, record those of rank 0.

    In an elastic run also ``membership/members``, the number of sites from which the round's cohort is drawn, and
    ``membership/generation``, the generation that brought them together.
    """

    def __init__(self) -> None:
        self._new = NewRecords()

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._new = NewRecords()

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._write_new(trainer)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # The strategy's own callback has drained by now.
        self._write_new(trainer)

    def _write_new(self, trainer: Trainer) -> None:
        records = self._new.take(trainer.strategy)
        if not records:
            return
        blocks: Sequence[Block] = getattr(trainer.strategy, "blocks", None) or ()
        index = {block.name: i for i, block in enumerate(blocks)}
        rows = [metrics_of(record, index) | membership_of(trainer.strategy, record.round) for record in records]
        for row in rows:
            for logger in trainer.loggers:
                logger.log_metrics(row, step=trainer.global_step)
        # Not by LightningModule.log: that would log them again, every log_every_n_steps, and takes several ms.
        trainer.callback_metrics.update({name: torch.tensor(value) for name, value in rows[-1].items()})


def metrics_of(record: RoundRecord, block_index: dict[str, int]) -> dict[str, float]:
    """Metrics of one round by their logged names."""
    metrics = {PREFIX + name: float(getattr(record, name)) for name in _FIELDS}
    if record.drift is not None:
        metrics[PREFIX + "drift"] = record.drift
    if record.nonfinite:
        metrics[PREFIX + "nonfinite"] = 1.0
    if record.dropped:
        metrics[PREFIX + "dropped"] = 1.0
    return {**metrics, PREFIX + "block": float(block_index.get(record.block, -1))}
