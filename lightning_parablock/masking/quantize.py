"""Values as whole numbers of steps, with what the numbers leave out kept as the residual (arXiv 1901.09847)."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import torch
from torch import Tensor

from lightning_parablock.codecs.compression import RECORD_SCALARS
from lightning_parablock.codecs.records import PIECE_SCALARS
from lightning_parablock.errors import NonFiniteError


@torch.no_grad()
def quantize(values: Tensor, steps: Tensor, limit: int, into: Tensor) -> int:
    """c = clamp(round half to even(u / step), -L, L), the quotient in float32; the values become e = u - c step.

    A step has the precision of bfloat16 (:func:`~lightning_parablock.masking.scales.steps`), so c step is exact; where
    c is not clamped, e is exact, too. Every operation is elementwise: no cut of the block changes a bit.

    Args:
        values: u of a part of a block that begins where a record does, shape (n,), float32, contiguous; overwritten.
        steps: The step of each record of the part, shape (n_records,), float32, on the same device.
        limit: L.
        into: Receives c, shape (n,), of the ring's type, on the same device.

    Returns:
        How many values were clamped.

    Raises:
        NonFiniteError: a value is NaN or infinite; nothing may be sent.
    """
    scratch = torch.empty(min(values.numel(), PIECE_SCALARS), dtype=torch.float32, device=values.device)
    saturated = 0
    for part, step in _pieces(values.numel(), steps):
        numbers = scratch[: part.stop - part.start].view(step.shape[0], -1)
        wanted = values[part].view(numbers.shape)
        torch.div(wanted, step, out=numbers).round_()
        saturated += _clamp(numbers, limit, wanted)
        into[part].view(numbers.shape).copy_(numbers)
        wanted.sub_(numbers.mul_(step))
    return saturated


@torch.no_grad()
def dequantize(sums: Tensor, steps: Tensor, out: Tensor) -> Tensor:
    """sums times step, exact in float32.

    Args:
        sums: Opened sums of a part that begins where a record does, shape (n,), of the ring's type.
        steps: The step of each record of the part, shape (n_records,), float32.
        out: Receives the result, shape (n,), float32, contiguous.

    Returns:
        ``out``.
    """
    out.copy_(sums)
    for part, step in _pieces(out.numel(), steps):
        out[part].view(step.shape[0], -1).mul_(step)
    return out


def _pieces(scalars: int, steps: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Pieces of whole records, then the short last one; each with its steps, shape (records, 1)."""
    whole = scalars - scalars % RECORD_SCALARS
    cuts = [*range(0, whole, PIECE_SCALARS), whole, scalars]
    for start, stop in pairwise(cuts):
        if start < stop:
            yield slice(start, stop), steps[start // RECORD_SCALARS : -(-stop // RECORD_SCALARS)].unsqueeze(1)


def _clamp(numbers: Tensor, limit: int, wanted: Tensor) -> int:
    low, high = (bound.item() for bound in numbers.aminmax())  # both are NaN where one value is
    is_finite = -torch.inf < low <= high < torch.inf
    if not is_finite and not bool(torch.isfinite(wanted).all()):  # a quotient may be infinite where no value is
        raise NonFiniteError("a contribution to a secure sum contains NaN or infinity")
    if -limit <= low and high <= limit:
        return 0
    n_saturated = int((numbers.abs() > limit).count_nonzero())
    numbers.clamp_(-limit, limit)
    return n_saturated
