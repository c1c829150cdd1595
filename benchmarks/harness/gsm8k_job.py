"""The job of the quality benchmarks: one fit on GSM8K with its held-out losses."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.harness.gsm8k import BATCH_SIZE, N_CLIENTS, SIZES, Size, data_options
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.harness.trainers import quiet_trainer
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM


class Curve(pl.Callback):
    """Collects (optimizer step, held-out loss of the committed model)."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        if trainer.state.fn == "fit":
            self.points.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one fit of this host's client.

    Args:
        plan: ``size`` (key of SIZES), ``seed``, ``strategy`` (options of ParaBlockStrategy), ``train`` and ``test``;
            ``clients``, if there are more or fewer than N_CLIENTS.

    Returns:
        ``held_out_loss``: (optimizer step, loss in nats per token) of the committed model; ``rounds``;
        ``upload_bytes``; ``seconds``.
    """
    torch.set_num_threads(1)
    size = SIZES[plan["size"]]
    strategy = _strategy(size, plan)
    module = CausalLM(PACKAGE, layers=size.layers, learning_rate=size.learning_rate)
    curve = Curve()
    every = {"steps": size.steps, "evaluate_every_steps": size.evaluate_every_steps}
    n_clients = plan.get("clients", N_CLIENTS)
    trainer, data = quiet_trainer(strategy, curve, n_clients=n_clients, **every), _data(size, plan, n_clients)
    started_s = time.time()
    before = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    trainer.fit(module, data)
    records = strategy.round_records
    after = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    # The last point inside fit covers merged commits only; the one after the drain replaces it.
    return {
        "held_out_loss": [(0, before), *[p for p in curve.points if p[0] < size.steps], (size.steps, after)],
        "rounds": len(records),
        "upload_bytes": sum(record.upload_bytes for record in records),
        "seconds": time.time() - started_s,
    }


def _strategy(size: Size, plan: Mapping[str, Any]) -> ParaBlockStrategy:
    chosen: dict[str, Any] = {"blocks": size.blocks, "local_steps": size.local_steps, "seed": plan["seed"]}
    return ParaBlockStrategy(**(chosen | plan["strategy"]))


def _data(size: Size, plan: Mapping[str, Any], n_clients: int) -> FederatedTextDataModule:
    return FederatedTextDataModule(
        **data_options(plan["train"], plan["test"]),
        val_examples=n_clients * -(-size.val_examples // n_clients),  # equally many for each client
        train_examples=size.steps * BATCH_SIZE,
        sequence_length=size.sequence_length,
        batch_size=BATCH_SIZE,
        seed=plan["seed"],
    )
