"""``blocks="auto"``: the fewest, largest blocks that fit into the clients' memory, by the formula of ``memory.py``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from lightning_parablock.blocks.partition import Block, balanced_partitions, finest_partition
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.planning.memory import memory_parts, model_size
from lightning_parablock.settings import Settings
from lightning_parablock.system.device_memory import free_bytes
from lightning_parablock.system.units import readable_bytes

FREE_SHARE = 0.75
"""Share of the memory that a device has free which a budget takes by default; the rest is left for activations."""


@dataclass(frozen=True)
class Budget:
    """Memory of a client's device for everything but activations.

    Attributes:
        size_bytes: Its size.
        counts_host: Whether the device is the host itself, so that what is kept in host memory counts, too.
        owner: Whose it is, for messages.
    """

    size_bytes: float
    counts_host: bool
    owner: str = "the client"


@dataclass(frozen=True)
class Fit:
    """Blocks and the memory that they take.

    Attributes:
        blocks: The blocks.
        needed_bytes: Memory of the rank that needs the most, without activations, as each budget counts it.
    """

    blocks: list[Block]
    needed_bytes: tuple[int, ...]


def budget_of(device: torch.device, module: nn.Module, memory_bytes: float | None, *, processes: int = 1) -> Budget:
    """The budget of a client that computes on this machine.

    Args:
        device: Its device.
        module: The model; what it takes of the device already counts as free.
        memory_bytes: The budget's size; None for the default share of what is free.
        processes: Number of clients that share this machine's memory.
    """
    if memory_bytes is None:
        held = sum(p.numel() * p.element_size() for p in module.parameters() if p.device == device)
        memory_bytes = FREE_SHARE * (free_bytes(device, processes=processes) + held)
    return Budget(memory_bytes, counts_host=device.type != "cuda")


def fewest_blocks(module: nn.Module, budgets: Sequence[Budget], n_ranks: int, settings: Settings) -> Fit:
    """The smallest number of balanced blocks whose memory is within every budget.

    A pure function of what all ranks share, so that all arrive at the same.

    Args:
        module: The model; on any device, also the meta device.
        budgets: Of all clients.
        n_ranks: Number of ranks.
        settings: The run's settings; their ``blocks`` do not matter.

    Raises:
        ConfigurationError: not even one block per trainable parameter is within every budget; says what that takes.
    """
    finest = fit_of(module, finest_partition(module), budgets, n_ranks, settings)
    for budget, needed in zip(budgets, finest.needed_bytes, strict=True):
        if needed > budget.size_bytes:
            weights = readable_bytes(model_size(module, finest.blocks).weights_bytes)
            raise ConfigurationError(
                f"blocks='auto': the memory of {budget.owner} is {readable_bytes(budget.size_bytes)}, and even the "
                f"smallest blocks, one per parameter, take {readable_bytes(needed)} without activations, of which the "
                f"weights are {weights}; raise memory, or take precision='bf16-true', LoRA, or a smaller model"
            )
    for blocks in balanced_partitions(module):
        fit = fit_of(module, blocks, budgets, n_ranks, settings)
        if all(needed <= budget.size_bytes for budget, needed in zip(budgets, fit.needed_bytes, strict=True)):
            return fit
    return finest


def fit_of(module: nn.Module, blocks: list[Block], budgets: Sequence[Budget], n_ranks: int, settings: Settings) -> Fit:
    """The memory that blocks take.

    Args:
        module: The model.
        blocks: Its blocks.
        budgets: Of all clients; only what they count matters.
        n_ranks: Number of ranks.
        settings: The run's settings.
    """
    parts = memory_parts(model_size(module, blocks), n_ranks, settings)
    needed = {
        counts_host: sum(part.size_bytes for part in parts if part.on_device or counts_host)
        for counts_host in (False, True)
    }
    return Fit(blocks, tuple(needed[budget.counts_host] for budget in budgets))


def reason_of(fit: Fit, budgets: Sequence[Budget]) -> str:
    """Why these blocks, in words: the number, the memory they take, and the budget that is closest to it."""
    tightest = max(range(len(budgets)), key=lambda i: fit.needed_bytes[i] / budgets[i].size_bytes)
    largest = max(fit.blocks, key=lambda block: block.numel)
    return (
        f"the fewest whose memory fits: {readable_bytes(fit.needed_bytes[tightest])} without activations, of the "
        f"{readable_bytes(budgets[tightest].size_bytes)} of {budgets[tightest].owner}; the largest ({largest.name}) "
        f"has {largest.numel:,} parameters"
    )
