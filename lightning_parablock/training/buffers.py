"""The mean of the clients' buffers, which the committed model shows."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import hash_tensors, is_finite

log = logging.getLogger(__name__)

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
    others: Mapping[str, Tensor] | None = None,
) -> Replaced:
    """Make floating-point buffers the clients' mean, summed in client order, and the others the first client's.

    A client's buffer that contains NaN or infinity is left out of the mean, with a warning.
    Buffers that are the same on all clients, such as a table of positions, are neither sent nor written: rounding
    could make their mean another value. Collective; the clients' :func:`kinds` are the same.

    Args:
        module: The module, also with buffers that are not saved.
        gather_hashes: Returns the list of every client, in client order.
        all_gather: Maps a tensor of shape (n,) to every client's, of shape (clients, n).
        others: Tensors by name that are treated as buffers, the same names on all clients.

    Returns:
        What :func:`put_back` needs.
    """
    buffers = {**dict(module.named_buffers()), **(others or {})}
    hashes = zip(*gather_hashes([hash_tensors([buffer]) for buffer in buffers.values()]), strict=True)
    different = {name: buffers[name] for name, clients in zip(buffers, hashes, strict=True) if len(set(clients)) > 1}
    replaced = [(buffer, buffer.clone()) for buffer in different.values()]
    for dtype in dict.fromkeys(buffer.dtype for buffer in different.values()):  # one message a type
        alike = {name: buffer for name, buffer in different.items() if buffer.dtype == dtype}
        gathered = all_gather(torch.cat([buffer.reshape(-1) for buffer in alike.values()]))
        sizes = [buffer.numel() for buffer in alike.values()]
        for (name, buffer), values in zip(alike.items(), gathered.split(sizes, dim=1), strict=True):
            buffer.copy_(_common(name, values).view_as(buffer))
    return replaced


class BuffersBefore:
    """A copy of a module's buffers from before a turn, for a turn that is discarded.

    Args:
        module: The module; None keeps no copy.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self._module = module
        self._values: dict[str, Tensor] | None = None

    def note(self) -> None:
        """Before a batch: copy the buffers, if no earlier batch of the turn has had them copied."""
        if self._module is not None and self._values is None:
            self._values = {name: buffer.detach().clone() for name, buffer in self._module.named_buffers()}

    def end_turn(self, *, discarded: bool) -> None:
        """Put the buffers back where the turn is discarded; the next turn notes its own."""
        values, self._values = self._values, None
        if self._module is not None and values is not None and discarded:
            with torch.no_grad():
                for name, buffer in self._module.named_buffers():
                    buffer.copy_(values[name])

    def state(self) -> dict[str, Tensor] | None:
        """For a checkpoint in the middle of a turn."""
        return self._values

    def load_state(self, state: dict[str, Tensor] | None) -> None:
        """Take over :meth:`state`."""
        self._values = state


@torch.no_grad()
def put_back(replaced: Replaced) -> None:
    """Give a client its own buffers back, and empty the list."""
    for buffer, own in replaced:
        buffer.copy_(own)
    replaced.clear()


def _common(name: str, values: Tensor) -> Tensor:
    """Of the clients' values of a buffer, shape (clients, n): what all shall show, shape (n,)."""
    if not values.is_floating_point():
        return values[0]
    finite = [is_finite(value) for value in values]
    if not all(finite):
        left_out = ", ".join(str(client) for client, kept in enumerate(finite) if not kept)
        log.warning(
            "parablock: the buffer %s of client %s contains NaN or infinity: left out of its mean", name, left_out
        )
    kept = values[finite] if any(finite) else values[:1]
    total = kept[0]
    for value in kept[1:]:
        total = total + value
    return total / len(kept)
