"""The job of bench_memory: peak memory of a fresh process while it loads the model and while it trains."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch

from benchmarks.harness.fits import columns
from benchmarks.harness.memory import LORA_RANK, forget_peak, resident_bytes, train_only, warm_up
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.harness.trainers import bare_trainer
from benchmarks.harness.workloads import loader
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.models import CausalLM
from lightning_parablock.models.flops import step_flops
from lightning_parablock.models.lora import Adapters, add_adapters
from lightning_parablock.models.shapes import config_of, module_without_weights
from lightning_parablock.models.speed import Step, measure_speed


def measure(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory of this process, whose first job this must be.

    Args:
        plan: ``method`` ("parablock", "adamw", "lora"), ``model`` (``layers``, ``tokens``, ``batch_size``), ``rounds``
            and ``strategy`` (options of ParaBlockStrategy; its K sets the steps of all methods).

    Returns:
        Resident memory in bytes: ``base_bytes`` before the model is loaded, ``loading_peak_bytes`` and
        ``training_peak_bytes`` above it, ``loaded_bytes`` in between; ``numels`` of the blocks, ``weights_bytes``.
    """
    module, facts = _loaded(plan)
    facts |= {"numels": [block.numel for block in partition(module, plan["strategy"]["blocks"])]}
    _train(plan, module)
    return facts | {"training_peak_bytes": resident_bytes("VmHWM") - facts["base_bytes"]}


def pace(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Floating-point operations per second in local steps on this host, as ``plan --probe`` measures them."""
    torch.set_num_threads(1)
    model = plan["model"]
    config = config_of(PACKAGE, layers=model["layers"])
    step = Step(model["batch_size"], model["tokens"], "float32", torch.device("cpu"), plan["processes"])
    return {"flop_per_s": measure_speed(config, step, plan["probe_s"]).flop_per_s}


def within_budget(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Peak memory and rounds of a run with ``blocks: auto`` in this process, whose first job this must be.

    Args:
        plan: As in :func:`measure`, with the method "parablock".

    Returns:
        What :func:`measure` returns, of the blocks that were chosen; their ``names`` and ``step_flops``, operations of
        a local step as ``plan`` counts them; ``rounds``: the round records by column.
    """
    module, facts = _loaded(plan)
    strategy = _train(plan, module)
    facts |= {"training_peak_bytes": resident_bytes("VmHWM") - facts["base_bytes"]}
    blocks, model = strategy.blocks, plan["model"]
    shape = module_without_weights(config_of(PACKAGE, layers=model["layers"]), "float32")
    return facts | {
        "names": [block.name for block in blocks],
        "numels": [block.numel for block in blocks],
        "step_flops": step_flops(shape, blocks, model["batch_size"], model["tokens"]),
        "rounds": columns(strategy.round_records),
    }


def activations(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Memory of forward and backward beyond weights and gradients, from a plain loop: one value per block.

    The last value is for the whole model.
    """
    torch.set_num_threads(1)
    warm_up()
    base = resident_bytes("VmRSS")
    module = CausalLM(PACKAGE, layers=plan["model"]["layers"])
    weights_bytes = sum(p.numel() * p.element_size() for p in module.parameters())
    blocks = partition(module, plan["strategy"]["blocks"])
    batches = list(loader(plan["model"], 2, 0))
    found: list[int] = []
    # The whole model also comes first, uncounted: what the first pass sets up exists in any training.
    for names in [_names(blocks), *(block.parameter_names for block in blocks), _names(blocks)]:
        gradients_bytes = train_only(module, names)
        forget_peak()
        for batch in batches:
            module.mean_loss(batch).backward()
            module.zero_grad()
        found.append(resident_bytes("VmHWM") - base - weights_bytes - gradients_bytes)
    return {"activations_bytes": found[1:]}


def _names(blocks: list[Block]) -> tuple[str, ...]:
    return tuple(name for block in blocks for name in block.parameter_names)


def _loaded(plan: Mapping[str, Any]) -> tuple[CausalLM, dict[str, Any]]:
    """The model, and memory while it was loaded; afterwards a new peak is measured."""
    torch.set_num_threads(1)
    warm_up()
    base = resident_bytes("VmRSS")
    module = CausalLM(PACKAGE, layers=plan["model"]["layers"])
    facts: dict[str, Any] = {"base_bytes": base, "loading_peak_bytes": resident_bytes("VmHWM") - base}
    facts |= {"loaded_bytes": resident_bytes("VmRSS") - base}
    facts |= {"weights_bytes": sum(p.numel() * p.element_size() for p in module.parameters())}
    forget_peak()
    return module, facts


def _train(plan: Mapping[str, Any], module: CausalLM) -> Any:
    """Train; returns the strategy."""
    options = plan["strategy"]
    steps, rank = plan["rounds"] * options["local_steps"], int(os.environ["RANK"])
    if plan["method"] == "lora":
        add_adapters(module.network, Adapters(LORA_RANK))
    is_alone = plan["method"] != "parablock"
    strategy: Any = "auto" if is_alone else ParaBlockStrategy(**options)
    trainer = bare_trainer(strategy, steps, num_nodes=1 if is_alone else int(os.environ["WORLD_SIZE"]))
    trainer.fit(module, loader(plan["model"], steps, rank))
    return strategy
