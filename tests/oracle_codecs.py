"""What arrives of values that were sent, worked out group by group: the reference for the bits of the package's codecs.

It imports nothing of the package and has no notion of bytes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

GROUPS = {"int8": 256, "int4": 64, "topk": 1024}
LARGEST = {"int8": 127, "int4": 7}
SMALLEST_NORMAL = 2.0**-126


def arrives(compression: str, values: Tensor, *, group: int | None = None, keep: float = 1 / 16) -> Tensor:
    """Return what ``values``, a vector of float32 from the start of a block on, become on their way."""
    if compression == "none":
        return values
    if compression == "bf16":
        return values.to(torch.bfloat16).to(torch.float32)
    parts = values.split(group or GROUPS[compression])
    if compression == "topk":
        return torch.cat([_largest_alone(part, max(1, round(keep * 1024))) for part in parts])
    return torch.cat([_in_whole_steps(part, LARGEST[compression]) for part in parts])


def _in_whole_steps(part: Tensor, largest: int) -> Tensor:
    if not all(math.isfinite(value) for value in part.tolist()):
        return torch.full_like(part, math.nan)
    magnitude = torch.tensor(max(abs(value) for value in part.tolist()))
    step = torch.maximum(magnitude / largest, torch.tensor(SMALLEST_NORMAL)).to(torch.bfloat16).to(torch.float32)
    steps = torch.round(part / step).clamp(-largest, largest)  # half to even
    return steps.to(torch.int32).to(torch.float32) * step


def _largest_alone(part: Tensor, kept: int) -> Tensor:
    sent = part.to(torch.bfloat16).to(torch.float32).tolist()
    order = sorted(range(len(sent)), key=lambda place: (not math.isnan(sent[place]), -abs(sent[place]), place))
    arrived = torch.zeros_like(part)
    for place in order[:kept]:
        arrived[place] = sent[place]
    return arrived
