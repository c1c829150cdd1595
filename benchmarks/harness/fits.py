"""The job of the speed benchmarks: one Lightning fit with the strategy, and what was measured during it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.harness.sockets import count_tcp_bytes
from benchmarks.harness.trainers import bare_trainer
from benchmarks.harness.workloads import loader, module_and_blocks
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.records import RoundRecord

Columns = dict[str, list[Any]]
"""Field of a record -> its value in every round, oldest first."""


def fit(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Run one fit of this host's client; all hosts take part.

    Args:
        plan: ``model`` (see :mod:`benchmarks.harness.workloads`), ``rounds``, ``strategy`` (options of
            ParaBlockStrategy); optionally ``steps`` and ``sockets`` to measure these, and ``trainer``, further options
            of the Trainer.

    Returns:
        ``rounds``: the round records by column; ``steps``: [start, end] of each step; ``sockets``: bytes sent and
        received on this process's connections before each step (at delay 0, when nothing is in flight).
    """
    torch.set_num_threads(1)
    rank, options = int(os.environ["RANK"]), {"unmatched": "freeze", "seed": 0, **plan["strategy"]}
    module, blocks = module_and_blocks(plan["model"])
    strategy = ParaBlockStrategy(blocks=blocks, **options)  # type: ignore[arg-type]
    steps = plan["rounds"] * options["local_steps"]
    clock, sockets = StepClock(), SocketCount()
    callbacks = [watch for name, watch in (("steps", clock), ("sockets", sockets)) if plan.get(name)]
    num_nodes = int(os.environ["WORLD_SIZE"])
    trainer = bare_trainer(strategy, steps, callbacks, num_nodes=num_nodes, **plan.get("trainer", {}))
    trainer.fit(module, loader(plan["model"], steps, rank))
    return {"rounds": columns(strategy.round_records), "steps": clock.spans, "sockets": sockets.counts}


def columns(records: Iterable[RoundRecord]) -> Columns:
    """Round records by field, seconds to the microsecond."""
    rows = list(records)
    return {field.name: [_rounded(getattr(row, field.name)) for row in rows] for field in fields(RoundRecord)}


def _rounded(value: Any) -> Any:
    return round(value, 6) if isinstance(value, float) else value


class StepClock(pl.Callback):
    """Records when each step began and ended. A step ends with the optimizer's step, before the end of the round.

    Attributes:
        spans: [start, end] of each step, in seconds as returned by ``time.time()``.
    """

    def __init__(self) -> None:
        self.spans: list[list[float]] = []
        self._start_s = 0.0

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        trainer.optimizers[0].register_step_post_hook(self._note)

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        self._start_s = time.time()

    def _note(self, *_: Any) -> None:
        self.spans.append([round(self._start_s, 6), round(time.time(), 6)])


class SocketCount(pl.Callback):
    """Reads the kernel's counters of this process's connections before each step, once everything sent has arrived.

    Attributes:
        counts: ``sent_bytes`` and ``received_bytes``, without TCP's own headers.
    """

    def __init__(self) -> None:
        self.counts: list[dict[str, int]] = []

    def on_train_batch_start(self, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        counted = count_tcp_bytes()
        self.counts.append({"sent_bytes": counted.acknowledged, "received_bytes": counted.received})
