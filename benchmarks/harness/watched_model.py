"""A model that validates by token and by example, and what is measured inside its fit."""

from __future__ import annotations

import time
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.harness.sockets import TcpBytes, count_tcp_bytes
from lightning_parablock.models import CausalLM
from lightning_parablock.models.metrics import TokenLoss

LOSSES = ("val_loss", "val_example_loss")


class TwoLossModel(CausalLM):
    """Counts its training examples, and validates by token and by example."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.trained_examples = 0
        self.example_loss = TokenLoss()

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Same as the parent's, and count the examples."""
        self.trained_examples += len(batch["input_ids"])
        return super().training_step(batch, batch_idx)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """``val_loss`` is the mean over all tokens, ``val_example_loss`` the mean over examples of each one's mean."""
        sums, counts = self.losses(batch)
        cast(TokenLoss, self.val_metrics["loss"]).update(sums.sum(), counts.sum())
        self.example_loss.update((sums / counts).sum(), torch.tensor(len(counts)))
        self.log("val_loss", cast(TokenLoss, self.val_metrics["loss"]), on_step=False, on_epoch=True)
        self.log("val_example_loss", self.example_loss, on_step=False, on_epoch=True)


class Watch(pl.Callback):
    """Collects the measurements made inside fit.

    Attributes:
        points: [optimizer step, loss by token, loss by example] of the committed model.
        step_cpu_s: Step number -> processor seconds of the training thread. Clients share cores here; this is what the
            step would take on a core of its own.
        sent: The kernel's byte counts from the first step to the end of the drain.
    """

    def __init__(self) -> None:
        self.points: list[list[float]] = []
        self.step_cpu_s: dict[int, float] = {}
        self.sent = TcpBytes(0, 0)
        self._begun_s, self._step = 0.0, 0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        self.sent = count_tcp_bytes()
        trainer.optimizers[0].register_step_post_hook(self._note)

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        self._step, self._begun_s = trainer.global_step, time.thread_time()

    def _note(self, *_: Any) -> None:
        self.step_cpu_s[self._step] = round(time.thread_time() - self._begun_s, 6)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        if trainer.state.fn == "fit":
            self.points.append([trainer.global_step, *(float(trainer.callback_metrics[name]) for name in LOSSES)])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; the strategy has drained by now."""
        self.sent = count_tcp_bytes() - self.sent
