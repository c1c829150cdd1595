"""Which parameters require a gradient: those of one block at a time."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


class BlockFreezer:
    """Sets ``requires_grad`` so that only the current block trains; restores the user's flags at the end.

    Gradients of frozen parameters are None, not zero: an optimizer moves a parameter by its momentum or weight decay
    even where the gradient is zero.

    Args:
        module: With the user's flags, after the optimizer was made: one that filters by ``requires_grad`` must have
            seen every parameter.
    """

    def __init__(self, module: nn.Module) -> None:
        self._trainable = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def train_only(self, block: Iterable[nn.Parameter]) -> None:
        """Freeze all parameters but those of a block."""
        chosen = {id(parameter) for parameter in block}
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None

    def thaw(self) -> None:
        """Restore the flags as they were before training; once, whatever the user sets them to afterwards."""
        for parameter in self._trainable:
            parameter.requires_grad_(True)
            parameter.grad = None
        self._trainable = []
