"""The job of bench_claims: one fit of one client, with held-out losses, processor seconds per step, and bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, cast

import lightning.pytorch as pl
import torch
from torch import Tensor

from benchmarks.claims.methods import N_CLIENTS
from benchmarks.harness.sockets import TcpBytes, count_tcp_bytes
from benchmarks.harness.trainers import quiet_trainer
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM
from lightning_parablock.models.metrics import TokenLoss

LOSSES = ("val_loss", "val_example_loss")


class ClaimsModel(CausalLM):
    """Decays the learning rate to zero, counts its training examples, and validates by token and by example.

    Args:
        falling_steps: Optimizer steps over which the learning rate decays linearly to zero.
    """

    def __init__(self, falling_steps: int, **options: Any) -> None:
        super().__init__(**options)
        self.falling_steps = falling_steps
        self.trained_examples = 0
        self.example_loss = TokenLoss()

    def configure_optimizers(self) -> Any:
        """AdamW with the decaying learning rate."""
        optimizer = super().configure_optimizers()
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.falling_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}

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


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one fit of this host's client; all hosts take part.

    Args:
        plan: ``seed``, ``steps`` of the run, ``evaluate_every_steps``, and options: ``model`` of ClaimsModel,
            ``strategy`` of ParaBlockStrategy, ``data`` of FederatedTextDataModule.

    Returns:
        ``held_out_loss`` (see :class:`Watch`, from before the first step to after the drain); ``rounds``: for
        each, number, block, optimizer steps, uploaded and downloaded bytes, drift; ``step_cpu_s``; number of training
        ``examples``; ``sent_bytes`` and ``received_bytes`` at the sockets; ``rows_per_client``; ``block_scalars``;
        ``seconds``.
    """
    torch.set_num_threads(1)
    pl.seed_everything(plan["seed"], verbose=False)
    module, data, watch = ClaimsModel(**plan["model"]), FederatedTextDataModule(**plan["data"]), Watch()
    strategy = ParaBlockStrategy(seed=plan["seed"], **plan["strategy"])
    every = {"steps": plan["steps"], "evaluate_every_steps": plan["evaluate_every_steps"]}
    trainer = quiet_trainer(strategy, watch, n_clients=N_CLIENTS, **every)
    started_s = time.time()
    before = trainer.validate(module, data, verbose=False)[0]
    trainer.fit(module, data)
    facts = _facts(strategy, data)
    after = trainer.validate(module, data, verbose=False)[0]
    inside = [point for point in watch.points if point[0] < plan["steps"]]
    # The last point inside fit covers merged commits only; the one after the drain replaces it.
    return facts | {
        "held_out_loss": [_point(0, before), *inside, _point(plan["steps"], after)],
        "step_cpu_s": watch.step_cpu_s,
        "examples": module.trained_examples,
        "sent_bytes": watch.sent.acknowledged,
        "received_bytes": watch.sent.received,
        "seconds": time.time() - started_s,
    }


def _facts(strategy: ParaBlockStrategy, data: FederatedTextDataModule) -> dict[str, Any]:
    records = strategy.round_records
    return {
        "rounds": [[r.round, r.block, r.steps, r.upload_bytes, r.download_bytes, r.drift] for r in records],
        "block_scalars": {block.name: block.numel for block in strategy.blocks},
        "rows_per_client": data.describe()["rows_per_client"],
    }


def _point(step: int, metrics: Mapping[str, float]) -> list[float]:
    return [step, *(metrics[name] for name in LOSSES)]
