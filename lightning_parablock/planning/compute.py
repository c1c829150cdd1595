"""Relative cost of a local step on each block, where only the parameters' sizes are known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning_parablock.blocks.partition import Block


def relative_step_costs(sizes: Mapping[str, int], blocks: Sequence[Block]) -> list[float]:
    """Cost of a local step on each block, in units of one forward pass.

    A step is a forward pass over all parameters, input gradients from the loss down to the block's first parameter, and
    weight gradients of the block; each costs as much as the forward pass of the parameters concerned.

    Args:
        sizes: Number of scalars of every parameter of the model, frozen ones too, in the order of the forward pass.
        blocks: Blocks, whose ``parameter_names`` are keys of ``sizes``.
    """
    below: dict[str, int] = {}
    total = 0
    for name, numel in sizes.items():
        below[name] = total
        total += numel
    return [1 + (total - min(below[name] for name in b.parameter_names) + b.numel) / total for b in blocks]
