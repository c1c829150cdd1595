"""Measured speed of this machine in local steps of a model, in floating-point operations per second."""

from __future__ import annotations

import time
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psutil
import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.initialization import no_init_weights

from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.models.flops import step_flops
from lightning_parablock.models.loading import first_layers
from lightning_parablock.models.names import Dtype
from lightning_parablock.models.shapes import ModelShape, module_without_weights

TIMED_BLOCKS = 3
_BLOCK_BYTES = 24
"""Bytes per parameter of the active block: gradient, optimizer state, and the optimizer's temporary buffers."""
_MEMORY_SHARE = 0.4
"""Share of the free memory for weights and the active block; activations need memory, too."""
_PATTERN_SCALARS = 1 << 20


@dataclass(frozen=True)
class Speed:
    """Result of a speed measurement.

    Attributes:
        flop_per_s: Floating-point operations per second, over forward, backward and optimizer of the timed steps.
        layers: Number of layers of the model that fitted into memory and time.
        steps: Number of timed steps.
    """

    flop_per_s: float
    layers: int
    steps: int


@dataclass(frozen=True)
class Step:
    """Size and device of a local step.

    Attributes:
        batch_size: Sequences per batch.
        sequence_length: Tokens per sequence.
        dtype: Type of the parameters.
        device: Device of the step.
        processes: Number of processes that share this machine's memory.
    """

    batch_size: int
    sequence_length: int
    dtype: Dtype
    device: torch.device
    processes: int = 1


def measure_speed(config: PretrainedConfig, step: Step, budget_s: float) -> Speed:
    """Time local steps on the first, a middle and the last block of a model with random weights.

    Two layers are timed first; their speed determines how many of the model's first layers leave time for steps, and
    the largest such number that also fits into memory is measured. A step is never interrupted, so the measurement
    exceeds ``budget_s`` where the first steps alone take longer.

    Raises:
        ConfigurationError: not even two layers fit into memory.
    """
    ends_s = time.monotonic() + budget_s
    few = min(2, _layers(config))
    if not _fits(first_layers(config, few), step):
        raise ConfigurationError(f"the probe of {few} layers needs more memory than is free; give step_s instead")
    first = _measure(first_layers(config, few), step, 0.0)
    limit_s = max(0.0, ends_s - time.monotonic()) / 2
    return _measure(first_layers(config, layers_to_time(config, step, first.flop_per_s, limit_s)), step, limit_s)


def layers_to_time(config: PretrainedConfig, step: Step, flop_per_s: float, limit_s: float) -> int:
    """How many of the first layers (all, half, a quarter...) fit into memory and can be timed once in ``limit_s``."""
    layers = _layers(config)
    while layers > 2:
        cut = first_layers(config, layers)
        if _fits(cut, step) and 2 * TIMED_BLOCKS * _mean_flops(cut, step) / flop_per_s < limit_s:
            return layers
        layers = max(2, layers // 2)
    return layers


def _measure(config: PretrainedConfig, step: Step, budget_s: float) -> Speed:
    """One step to warm up and at least one timed on each of three blocks; more while the budget lasts."""
    shape = module_without_weights(config, step.dtype)
    blocks = _blocks(shape)
    flops = step_flops(shape, blocks, step.batch_size, step.sequence_length)
    module, ids = _module(config, step), _ids(config, step)
    ends_s, spent_s, counted, steps = time.monotonic() + budget_s, 0.0, 0.0, 0
    while steps == 0 or time.monotonic() < ends_s:
        for index in sorted({i * (len(blocks) - 1) // (TIMED_BLOCKS - 1) for i in range(TIMED_BLOCKS)}):
            with _training(module, blocks[index]) as optimizer:
                _timed_step(module, ids, optimizer, step.device)
                spent_s += _timed_step(module, ids, optimizer, step.device)
            counted, steps = counted + flops[index], steps + 1
    return Speed(counted / spent_s, _layers(config), steps)


def _timed_step(module: ModelShape, ids: Tensor, optimizer: torch.optim.Optimizer, device: torch.device) -> float:
    started_s = time.perf_counter()
    network: Any = module.network
    network(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    optimizer.step()
    optimizer.zero_grad()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


@contextmanager
def _training(module: ModelShape, block: Block) -> Generator[torch.optim.Optimizer]:
    """Train only the block inside the context; its optimizer's state is freed at the end."""
    chosen: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name in block.parameter_names)
        if parameter.requires_grad:
            chosen.append(parameter)
    yield torch.optim.AdamW(chosen, lr=1e-6)


def _module(config: PretrainedConfig, step: Step) -> ModelShape:
    """A model with random weights: one repeated pattern, since drawing billions of numbers would outlast the probe."""
    with torch.device(step.device), no_init_weights():
        module = ModelShape(config, step.dtype)
    pattern = 0.02 * torch.randn(_PATTERN_SCALARS, generator=torch.Generator().manual_seed(0))
    pattern = pattern.to(step.device, getattr(torch, step.dtype))
    with torch.no_grad():
        for parameter in module.parameters():
            for part in parameter.view(-1).split(_PATTERN_SCALARS):
                part.copy_(pattern[: part.numel()])
    return module


def _ids(config: PretrainedConfig, step: Step) -> Tensor:
    shape = (step.batch_size, step.sequence_length)
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, _text(config).vocab_size, shape, generator=generator).to(step.device)


def _blocks(shape: ModelShape) -> list[Block]:
    return partition(shape, 1 if _layers(shape.network.config) == 1 else "layers")


def _mean_flops(config: PretrainedConfig, step: Step) -> float:
    shape = module_without_weights(config)
    flops = step_flops(shape, _blocks(shape), step.batch_size, step.sequence_length)
    return sum(flops) / len(flops)


def _fits(config: PretrainedConfig, step: Step) -> bool:
    shape = module_without_weights(config, step.dtype)
    weights_bytes = sum(p.numel() * p.element_size() for p in shape.parameters())
    largest = max(block.numel for block in _blocks(shape))
    return weights_bytes + _BLOCK_BYTES * largest < _MEMORY_SHARE * _free_bytes(step.device) / step.processes


def _free_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    return psutil.virtual_memory().available


def _layers(config: PretrainedConfig) -> int:
    return _text(config).num_hidden_layers


def _text(config: PretrainedConfig) -> Any:
    return config.get_text_config()  # pyright: ignore[reportUnknownMemberType]
