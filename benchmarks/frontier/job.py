"""The job of bench_frontier: one fit of one client, with held-out losses, seconds per step, bytes, and peak memory."""

from __future__ import annotations

import time
from collections.abc import Mapping
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from benchmarks.frontier.methods import N_CLIENTS
from benchmarks.harness.memory import forget_peak, resident_bytes, warm_up
from benchmarks.harness.trainers import quiet_trainer
from benchmarks.harness.watched_model import LOSSES, TwoLossModel, Watch
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule

N_PLAIN_STEPS = 7
"""Their median is what a plain step takes; two more come first, while memory is still new."""


class PeakWatch(Watch):
    """Also collects the peak of the resident memory, without that of the validations in between.

    Attributes:
        peak_bytes: The peak from the start of fit to its last validation, or to the end of the drain without one.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._validated = False

    def on_validation_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning, before the strategy shows the committed model."""
        self._note_peak()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; the strategy puts the trained values back only after it."""
        super().on_validation_end(trainer, pl_module)
        self._validated = True

    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        if self._validated:
            forget_peak()
            self._validated = False
        super().on_train_batch_start(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning; the strategy has drained by now."""
        super().on_train_end(trainer, pl_module)
        if not self._validated:
            self._note_peak()

    def _note_peak(self) -> None:
        self.peak_bytes = max(self.peak_bytes, resident_bytes("VmHWM"))


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one fit of this host's client; all hosts take part.

    Args:
        plan: ``seed``, ``steps``, ``evaluate_every_steps``, ``evaluates_start``, and options: ``model`` of CausalLM,
            ``strategy`` of ParaBlockStrategy, ``data`` of FederatedTextDataModule.

    Returns:
        ``held_out_loss``: [optimizer step, loss by token, loss by example] of the committed model, the last one after
        the drain; ``rounds``: block, optimizer steps, uploaded and downloaded bytes of each; ``step_cpu_s``, the
        training thread's processor seconds of each step; ``plain_step_s``, those of a step without any method, by which
        runs on different machines are compared; number of training ``examples``; ``sent_bytes`` and ``received_bytes``
        at the sockets; resident ``base_bytes`` before the model is loaded, and ``peak_bytes`` above it;
        ``block_scalars``; ``seconds`` of everything.
    """
    started_s = time.time()
    torch.set_num_threads(1)
    warm_up()
    base_bytes = resident_bytes("VmRSS")
    pl.seed_everything(plan["seed"], verbose=False)
    module, data, watch = TwoLossModel(**plan["model"]), FederatedTextDataModule(**plan["data"]), PeakWatch()
    strategy = ParaBlockStrategy(seed=plan["seed"], **plan["strategy"])
    every = {"steps": plan["steps"], "evaluate_every_steps": plan["evaluate_every_steps"]}
    trainer = quiet_trainer(strategy, watch, n_clients=N_CLIENTS, **every)
    before = [_evaluated(0, trainer, module, data)] if plan["evaluates_start"] else []
    forget_peak()
    trainer.fit(module, data)
    records, blocks = strategy.round_records, {block.name: block.numel for block in strategy.blocks}
    inside = [point for point in watch.points if point[0] < plan["steps"]]
    # The last point inside fit covers merged commits only; the one after the drain replaces it.
    after = _evaluated(plan["steps"], trainer, module, data)
    return {
        "held_out_loss": [*before, *inside, after],
        "rounds": [[r.block, r.steps, r.upload_bytes, r.download_bytes] for r in records],
        "step_cpu_s": [round(watch.step_cpu_s[step], 4) for step in sorted(watch.step_cpu_s)],
        "plain_step_s": plain_step_s(module.network.config, plan["data"]["sequence_length"]),
        "examples": module.trained_examples,
        "sent_bytes": watch.sent.acknowledged,
        "received_bytes": watch.sent.received,
        "base_bytes": base_bytes,
        "peak_bytes": watch.peak_bytes - base_bytes,
        "block_scalars": blocks,
        "seconds": time.time() - started_s,
    }


def _evaluated(step: int, trainer: pl.Trainer, module: TwoLossModel, data: FederatedTextDataModule) -> list[float]:
    metrics = trainer.validate(module, data, verbose=False)[0]
    return [step, *(metrics[name] for name in LOSSES)]


def plain_step_s(config: PretrainedConfig, sequence_length: int) -> float:
    """Processor seconds of one forward and backward pass through the whole model; its values are random.

    All of a run's hosts do it at once, as they train.
    """
    model = AutoModelForCausalLM.from_config(config)
    tokens = torch.randint(config.vocab_size, (1, sequence_length))
    found = list[float]()
    for _ in range(2 + N_PLAIN_STEPS):
        begun_s = time.thread_time()
        model(input_ids=tokens, labels=tokens).loss.backward()
        model.zero_grad()
        found.append(time.thread_time() - begun_s)
    return median(found[2:])
