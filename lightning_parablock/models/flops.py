"""Floating-point operations of a local step, counted by running it on the meta device: nothing is computed."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import PretrainedConfig

from lightning_parablock.blocks.partition import Block, partition
from lightning_parablock.models.loading import first_layers
from lightning_parablock.models.shapes import ModelShape, module_without_weights

COUNTED_BLOCKS = 8
"""With more blocks, only the first two, the middle and the last two are counted; the others are interpolated."""


def step_flops(module: ModelShape, blocks: Sequence[Block], batch_size: int, sequence_length: int) -> list[float]:
    """Operations of one local step on each block: forward pass, and backward pass down to the block's first parameter.

    A multiplication and an addition are two. Attention counts in full, causal or not; the optimizer does not count.

    Args:
        module: The model, on the meta device.
        blocks: Blocks of its parameters.
        batch_size: Sequences per step.
        sequence_length: Tokens per sequence.
    """
    forward, loss = _forward(module, sequence_length)
    indices = _counted(len(blocks))
    parameters = dict(module.named_parameters())
    counted = [_backward(loss, [parameters[name] for name in blocks[i].parameter_names]) for i in indices]
    return [batch_size * (forward + backward) for backward in _interpolated(indices, counted, len(blocks))]


def layers_flops(config: PretrainedConfig, batch_size: int, sequence_length: int) -> list[float]:
    """What :func:`step_flops` gives for one block per layer, of a model whose layers are all alike.

    Only models of three and four layers are run: one more layer adds the same to a step on one of the first two blocks,
    and on one of the last two; those between lie on a line.

    Args:
        config: The model's configuration, of four layers or more.
        batch_size: Sequences per step.
        sequence_length: Tokens per sequence.
    """
    modules = [module_without_weights(first_layers(config, layers)) for layers in (3, 4)]
    three, four = (step_flops(m, partition(m, "layers"), batch_size, sequence_length) for m in modules)
    more = config.num_hidden_layers - 4
    n_blocks = len(four) + more
    counted = [four[i] + (four[i] - three[i]) * more for i in (0, 1, -2, -1)]
    return _interpolated([0, 1, n_blocks - 2, n_blocks - 1], counted, n_blocks)


def _forward(module: ModelShape, sequence_length: int) -> tuple[int, Tensor]:
    network: Any = module.network
    network.set_attn_implementation("eager")  # the others read the mask's values
    ids = torch.zeros(1, sequence_length, dtype=torch.long, device="meta")
    with FlopCounterMode(display=False) as counter:
        loss = module(ids, torch.ones_like(ids)).sum()
    return counter.get_total_flops(), loss


def _backward(loss: Tensor, parameters: Sequence[Tensor]) -> int:
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(loss, parameters, retain_graph=True)
    return counter.get_total_flops()


def _counted(n_blocks: int) -> list[int]:
    if n_blocks <= COUNTED_BLOCKS:
        return list(range(n_blocks))
    return [0, 1, n_blocks // 2, n_blocks - 2, n_blocks - 1]


def _interpolated(indices: Sequence[int], values: Sequence[float], n: int) -> list[float]:
    found = dict(zip(indices, map(float, values), strict=True))
    for low, high in pairwise(indices):
        slope = (found[high] - found[low]) / (high - low)
        found.update({i: found[low] + slope * (i - low) for i in range(low + 1, high)})
    return [found[i] for i in range(n)]
