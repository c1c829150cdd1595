"""What arrives of values that were sent, worked out group by group: the reference for the bits of the package's codecs.

It imports nothing of the package and has no notion of bytes.
"""

from __future__ import annotations

import math
import struct

import torch
from torch import Tensor

GROUPS = {"int8": 256, "int4": 64, "topk": 1024, "sparse": 32}
LARGEST = {"int8": 127, "int4": 7}
SMALLEST_NORMAL = 2.0**-126


def arrives(compression: str, values: Tensor, *, group: int | None = None, keep: float = 1 / 16) -> Tensor:
    """Return what ``values``, a vector of float32 from the start of a block on, become on their way."""
    if compression == "none":
        return values
    if compression == "bf16":
        return values.to(torch.bfloat16).to(torch.float32)
    if compression == "sparse":
        return torch.cat([_largest_of_groups(part, group or GROUPS["sparse"]) for part in values.split(1024)])
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


def _largest_of_groups(part: Tensor, group: int) -> Tensor:
    """Every (1024 / group)th value makes a group; the largest of each is sent, in a sign and one of two levels."""
    n = 1024 // group
    values = part.tolist() + [0.0] * (1024 - len(part))
    chosen = [max(range(j, 1024, n), key=lambda place: (_rank(values[place], group), -place)) for j in range(n)]
    sizes = [abs(values[place]) for place in chosen]
    low, high, middle = math.nan, math.nan, math.nan
    if all(math.isfinite(size) for size in sizes):
        top = max(sizes)
        middle = min(_single(_single(min(sizes) / 2) + _single(top / 2)), top)
        low = 0.0 if min(sizes) == 0 else _level([size for size in sizes if size < middle], top)
        high = _level([size for size in sizes if size >= middle], top)
    arrived = torch.zeros(1024)
    for place, size in zip(chosen, sizes, strict=True):
        arrived[place] = math.copysign(low if size < middle else high, values[place])
    return arrived[: len(part)]


def _rank(value: float, group: int) -> int:
    """A magnitude, without as many of the last bits of its significand as a place in a group has."""
    (bits,) = struct.unpack("<I", struct.pack("<f", value))
    return (bits & 0x7FFFFFFF) // group


def _level(sizes: list[float], top: float) -> float:
    """The mean, in whole parts of the largest magnitude, as bfloat16."""
    unit = max(top, SMALLEST_NORMAL)
    parts = [round(_single(size / unit) * 65536) for size in sizes]
    mean = _single(sum(parts) / max(1, len(parts)))
    level = min(_single(mean * _single(unit / 65536)), float(torch.finfo(torch.bfloat16).max))
    return float(torch.tensor(level, dtype=torch.float32).bfloat16())


def _single(value: float) -> float:
    """The nearest float32."""
    return struct.unpack("<f", struct.pack("<f", value))[0]
