"""The two fits that bench_steal and bench_gpu compare step by step."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.harness.trainers import bare_trainer
from benchmarks.harness.turns import Turns
from benchmarks.harness.workloads import loader, module_and_blocks
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import partition

JOBS = {"parablock": "benchmarks.harness.turn_jobs:fit_parablock", "plain": "benchmarks.harness.turn_jobs:fit_plain"}


def fit_plain(plan: Mapping[str, Any], turns: Turns) -> None:
    """Plain Lightning, with all parameters outside the blocks frozen.

    Args:
        plan: ``model`` (see :mod:`benchmarks.harness.workloads`), ``steps``, ``local_steps``, and ``trainer``, further
            options.
        turns: Callback that times the steps.
    """
    torch.set_num_threads(1)
    module, blocks = module_and_blocks(plan["model"])
    trained = {name for block in partition(module, blocks, "freeze") for name in block.parameter_names}
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in trained)
    _fit("auto", module, plan, turns)


def fit_parablock(plan: Mapping[str, Any], turns: Turns) -> None:
    """One client that waits for nothing: its exchange stays inside the process. Arguments as for :func:`fit_plain`."""
    torch.set_num_threads(1)
    module, blocks = module_and_blocks(plan["model"])
    strategy = ParaBlockStrategy(blocks=blocks, unmatched="freeze", local_steps=plan["local_steps"], seed=0)  # type: ignore[arg-type]
    _fit(strategy, module, plan, turns)


def _fit(strategy: Any, module: Any, plan: Mapping[str, Any], turns: Turns) -> None:
    trainer = bare_trainer(strategy, plan["steps"], [turns], **plan.get("trainer", {}))
    trainer.fit(module, loader(plan["model"], plan["steps"], 0))
