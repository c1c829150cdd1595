"""The job of bench_claims: one fit of one client, with held-out losses, processor seconds per step, and bytes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.claims.methods import N_CLIENTS
from benchmarks.harness.trainers import quiet_trainer
from benchmarks.harness.watched_model import LOSSES, TwoLossModel, Watch
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule


class ClaimsModel(TwoLossModel):
    """Decays the learning rate to zero.

    Args:
        falling_steps: Optimizer steps over which the learning rate decays linearly to zero.
    """

    def __init__(self, falling_steps: int, **options: Any) -> None:
        super().__init__(**options)
        self.falling_steps = falling_steps

    def configure_optimizers(self) -> Any:
        """AdamW with the decaying learning rate."""
        optimizer = super().configure_optimizers()
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=self.falling_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": falling, "interval": "step"}}


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
