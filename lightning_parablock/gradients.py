"""The gradient's norm, by which the block order "importance" chooses."""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import nn


@torch.no_grad()
def gradient_norm(parameters: Iterable[nn.Parameter]) -> float:
    """Euclidean norm of the gradient of all these parameters together; 0 where none has one."""
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    return math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
