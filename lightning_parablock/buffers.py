"""The mean of the clients' buffers: what the committed model shows of what is no parameter."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from lightning_parablock.flat import hash_tensors

Replaced = list[tuple[Tensor, Tensor]]
"""Buffers that were written, each with a copy of what it held before."""


def kinds(module: nn.Module) -> dict[str, str]:
    """Type and shape of each buffer, printable: what clients must have in common."""
    return {f"buffer {name}": f"{buffer.dtype} {tuple(buffer.shape)}" for name, buffer in module.named_buffers()}


@torch.no_grad()
def show_mean(
    module: nn.Module,
    gather_hashes: Callable[[list[str]], list[list[str]]],
    all_gather: Callable[[Tensor], Tensor],
) -> Replaced:
    """Make floating-point buffers the clients' mean, summed in client order, and the others the first client's.

    Buffers that are the same on all clients, such as a table of positions, are neither sent nor written: rounding
    could make their mean another value. Collective; the clients' :func:`kinds` are the same.

    Args:
        module: Whose buffers, also those that are not saved.
        gather_hashes: Gives the list of every client, in client order.
        all_gather: Maps a tensor of shape (n,) to every client's, of shape (clients, n).

    Returns:
        What :func:`put_back` needs.
    """
    buffers = list(module.buffers())
    hashes = zip(*gather_hashes([hash_tensors([buffer]) for buffer in buffers]), strict=True)
    different = [buffer for buffer, clients in zip(buffers, hashes, strict=True) if len(set(clients)) > 1]
    replaced = [(buffer, buffer.clone()) for buffer in different]
    for dtype in dict.fromkeys(buffer.dtype for buffer in different):  # one message a type
        alike = [buffer for buffer in different if buffer.dtype == dtype]
        common = _common(all_gather(torch.cat([buffer.reshape(-1) for buffer in alike])))
        for buffer, part in zip(alike, common.split([buffer.numel() for buffer in alike]), strict=True):
            buffer.copy_(part.view_as(buffer))
    return replaced


@torch.no_grad()
def put_back(replaced: Replaced) -> None:
    """Give a client its own buffers back, and empty the list."""
    for buffer, own in replaced:
        buffer.copy_(own)
    replaced.clear()


def _common(values: Tensor) -> Tensor:
    """Of the clients' values, shape (clients, n): what all shall show, shape (n,)."""
    if not values.is_floating_point():
        return values[0]
    total = values[0]
    for value in values[1:]:
        total = total + value
    return total / len(values)
