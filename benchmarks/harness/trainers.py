"""Trainers that write, log and print nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl

from lightning_parablock import ParaBlockStrategy

SILENT: dict[str, Any] = {
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def bare_trainer(
    strategy: Any, steps: int, callbacks: Iterable[pl.Callback] = (), *, num_nodes: int = 1, **options: Any
) -> pl.Trainer:
    """A Trainer that does nothing but train for ``steps`` steps."""
    defaults: dict[str, Any] = {"accelerator": "cpu", "devices": 1}
    return pl.Trainer(
        strategy=strategy,
        num_nodes=num_nodes,
        max_steps=steps,
        max_epochs=-1,
        callbacks=list(callbacks),
        use_distributed_sampler=False,
        **(SILENT | defaults | options),
    )


def quiet_trainer(
    strategy: ParaBlockStrategy, watch: pl.Callback, *, n_clients: int, steps: int, evaluate_every_steps: int
) -> pl.Trainer:
    """A silent Trainer for one of ``n_clients`` hosts that trains for ``steps`` steps and evaluates in between."""
    return pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        num_nodes=n_clients,
        max_steps=steps,
        val_check_interval=evaluate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[watch],
        **SILENT,
    )
