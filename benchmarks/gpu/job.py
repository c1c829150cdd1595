"""The jobs of bench_gpu: memory on the device, and copies between device and host."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch import Tensor

from benchmarks.harness.clock import timed
from benchmarks.harness.memory import LORA_RANK, resident_bytes, train_only
from benchmarks.harness.trainers import bare_trainer
from benchmarks.harness.workloads import loader, module_and_blocks
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import partition
from lightning_parablock.models.lora import Adapters, add_adapters


def memory(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Peak of one fit on the device.

    Args:
        plan: ``method`` ("parablock", "adamw", "lora"), ``model`` (kind "shape"), ``strategy``, ``trainer`` and
            ``rounds``.

    Returns:
        ``weights_bytes``, ``numels`` of the blocks, ``peak_bytes`` allocated on the device in training,
        ``host_peak_bytes`` resident of the whole process, ``activations_bytes`` of a plain loop, one per block.
    """
    module, blocks = module_and_blocks(plan["model"])
    cut = partition(module, blocks)
    facts: dict[str, Any] = {"weights_bytes": sum(p.numel() * p.element_size() for p in module.parameters())}
    facts |= {"numels": [block.numel for block in cut]}
    if plan["method"] == "parablock":
        found = [_activations(plan, module, block.parameter_names) for block in cut]
        facts |= {"activations_bytes": [size - facts["weights_bytes"] for size in found]}
        for parameter in module.parameters():
            parameter.requires_grad_(True)
    strategy: Any = ParaBlockStrategy(**plan["strategy"]) if plan["method"] == "parablock" else "auto"
    if plan["method"] == "lora":
        add_adapters(cast(Any, module).network, Adapters(LORA_RANK))
    steps = plan["rounds"] * plan["strategy"]["local_steps"]
    _forget_peak()
    bare_trainer(strategy, steps, **plan["trainer"]).fit(module, loader(plan["model"], steps, 0))
    return facts | {"peak_bytes": _peak_bytes(), "host_peak_bytes": resident_bytes("VmHWM")}


def _activations(plan: Mapping[str, Any], module: Any, names: tuple[str, ...]) -> int:
    """Peak memory of forward and backward with only these parameters trainable, minus their gradients."""
    gradients_bytes = train_only(module, names)
    device = next(module.parameters()).device
    _forget_peak()
    for batch in loader(plan["model"], 2, 0):
        module.mean_loss({name: value.to(device) for name, value in batch.items()}).backward()
        module.zero_grad()
    return _peak_bytes() - gradients_bytes


def _forget_peak() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def _peak_bytes() -> int:
    return torch.cuda.max_memory_allocated() if torch.cuda.is_available() else resident_bytes("VmHWM")


def copies(plan: Mapping[str, Any]) -> dict[str, list[float]]:
    """GB/s between device and host, with pinned and with pageable memory.

    Args:
        plan: ``device``, ``megabytes`` per copy, ``repeats``.
    """
    scalars = plan["megabytes"] * 250_000
    there = torch.zeros(scalars, device=plan["device"])
    hosts = {"pageable": torch.zeros(scalars)}
    if plan["device"] == "cuda":
        hosts["pinned"] = torch.zeros(scalars).pin_memory()
    works: dict[str, Callable[[], Tensor]] = {}
    for name, host in hosts.items():
        works[f"{name} to host"] = lambda host=host: host.copy_(there, non_blocking=True)
        works[f"{name} to device"] = lambda host=host: there.copy_(host, non_blocking=True)
    gigabytes = 4 * scalars / 1e9
    passes = [{name: timed(work) for name, work in works.items()} for _ in range(1 + plan["repeats"])][1:]
    return {name: [gigabytes / one[name] for one in passes] for name in works}
