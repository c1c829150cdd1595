"""A Lightning fit of one client: plain DDP, or this package's strategy with its presets and over LoRA adapters."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.strategies import DDPStrategy, Strategy

from benchmarks.harness.trainers import SILENT
from benchmarks.peers.job import Job, leave, meet, sent_bytes
from benchmarks.peers.methods import N_CLIENTS
from benchmarks.peers.task import PeerModel, data_of, model_of, point, warm_up
from lightning_parablock import ParaBlockStrategy

LIMIT_S = 3600.0


class Curve(pl.Callback):
    """Held-out loss of the committed model at steps 0, n, 2n, ... and after the drain."""

    def __init__(self, job: Job) -> None:
        self.points: list[dict[str, Any]] = []
        self._overlaps = job.of_method.overlaps
        self._start_bytes: int | None = None

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; what was sent before is not counted."""
        self._start_bytes = sent_bytes()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning, before the first step and every so many steps."""
        assert isinstance(pl_module, PeerModel)
        start_bytes = sent_bytes() if self._start_bytes is None else self._start_bytes
        self.points.append(point(trainer.global_step, pl_module.taken_sums(), start_bytes))

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; the strategy has drained by now."""
        assert isinstance(pl_module, PeerModel) and self._start_bytes is not None
        if not self._overlaps:
            return  # the last validation has measured it
        data: Any = trainer.datamodule  # type: ignore[attr-defined]
        sums = pl_module.held_out(data.val_dataloader())
        self.points.append(point(trainer.global_step, sums, self._start_bytes, drained=True))


class Stamps(pl.Callback):
    """Records when each step was over, including the wait at a round's end; the result is written before any drain."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._stamps_s: list[float] = []

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning: warm up, and start the clock once all clients have arrived."""
        assert isinstance(pl_module, PeerModel)
        warm_up(pl_module, trainer.optimizers[0])
        meet(self._job, "start")
        self._start_bytes = sent_bytes()
        self._stamps_s.append(time.monotonic())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning, after the strategy's own callback."""
        self._stamps_s.append(time.monotonic())
        if trainer.global_step == self._job.steps:
            leave(self._job, {"stamps_s": self._stamps_s, "sent_bytes": sent_bytes() - self._start_bytes})


def run(job: Job) -> None:
    """Train and write the curve, or time and write the time stamps."""
    module = model_of(job)
    data = data_of(job, module)
    watch = Stamps(job) if job.timed else Curve(job)
    every = None if job.timed else job.evaluate_every_steps
    trainer = pl.Trainer(
        strategy=_strategy(job),
        accelerator="cpu",
        devices=1,
        num_nodes=N_CLIENTS,
        max_steps=job.steps,
        val_check_interval=every,
        limit_val_batches=0 if job.timed else None,
        check_val_every_n_epoch=None if every else 1,
        num_sanity_val_steps=0 if job.timed else -1,
        callbacks=[watch],
        use_distributed_sampler=False,
        **SILENT,
    )
    trainer.fit(module, datamodule=data)
    if isinstance(watch, Curve):
        leave(job, {"points": watch.points})


def _strategy(job: Job) -> Strategy:
    if job.of_method.kind == "ddp":
        return DDPStrategy(process_group_backend="gloo")
    whole = {"blocks": 1} if job.of_method.kind == "lora" else {"blocks": job.of_size.blocks}
    limits = {"exchange_timeout_s": LIMIT_S, "straggler_timeout_s": LIMIT_S}
    options: dict[str, Any] = {"local_steps": job.local_steps, "seed": job.seed, **limits, **whole}
    return ParaBlockStrategy(**(options | dict(job.of_method.options)))
