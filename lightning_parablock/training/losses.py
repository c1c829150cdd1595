"""What a training step hands to the backward pass where it returns nothing, or a loss without any gradient."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def loss_of_nothing(device: torch.device) -> Tensor:
    """A loss on which no parameter depends: the optimizer finds no gradient and moves nothing."""
    return torch.zeros((), device=device, requires_grad=True)


def with_backward(output: Any) -> Any:
    """What a training step returned, with a loss that has a backward pass.

    A loss that depends on frozen parameters alone has none: a head that the batch does not use, a mixture of experts.
    Its value stays; the backward pass gives no parameter a gradient.

    Args:
        output: A loss, or a mapping with one under "loss"; anything else is returned as it is.
    """
    if isinstance(output, Mapping):
        return {**output, "loss": with_backward(output["loss"])} if "loss" in output else output
    if not isinstance(output, Tensor) or output.requires_grad or not output.is_floating_point():
        return output
    return output + torch.zeros((), dtype=output.dtype, device=output.device, requires_grad=True)
