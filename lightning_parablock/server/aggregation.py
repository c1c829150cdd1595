"""What the clients' uploads become on their way into the server's arithmetic: one mean per part of a block.

Every transport aggregates here, whether the uploads came as messages or not, so all of them give the same bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Received:
    """One client's contribution to a part of a block, as the server got it.

    Attributes:
        weight: n_i of the mean; 0 for a client that has no part in it.
        gradient_norm: Gradient norm of the block at the client's first local step.
        read: Returns the part of the delta, shape (scalars,), float32, on the host. It may be a buffer that the next
            client's part overwrites.
    """

    weight: int
    gradient_norm: float
    read: Callable[[], Tensor]


@dataclass(frozen=True)
class Aggregate:
    """What the server is to learn from the clients about a part of a block.

    Attributes:
        mean: G of the part, shape (scalars,), float32; may be changed, and the next aggregate overwrites it.
        gradient_norm: Mean of the clients' gradient norms; NaN where no client has one.
    """

    mean: Tensor
    gradient_norm: float


class MeanAggregator:
    """The weighted mean over the clients, added in ascending client id; for the use of one thread."""

    def __init__(self) -> None:
        self._scratch = torch.empty(0, dtype=torch.float32, device="cpu")

    @torch.no_grad()
    def aggregate(self, received: Mapping[int, Received], scalars: int) -> Aggregate:
        """Aggregate a part of a block.

        Args:
            received: By client id, from every client of the cohort.
            scalars: Length of the part.
        """
        ordered = [received[client] for client in sorted(received)]
        weights = [one.weight for one in ordered]
        mean = weighted_mean((one.read() for one in ordered), weights, self._buffer(scalars))
        return Aggregate(mean, mean_norm([one.gradient_norm for one in ordered], weights))

    def _buffer(self, scalars: int) -> Tensor:
        if self._scratch.numel() < scalars:
            # Never the default type: Lightning changes it for all threads while a bf16-true model computes.
            self._scratch = torch.empty(scalars, dtype=torch.float32, device="cpu")
        return self._scratch[:scalars]


def weighted_mean(deltas: Iterable[Tensor], weights: Sequence[int], out: Tensor) -> Tensor:
    """G = (sum of n_i Delta_i) / (sum of n_i), added in the order given, which must be ascending client id.

    Args:
        deltas: One vector per client, all of the shape of ``out``; each is read before the next is asked for.
        weights: n_i, one per client: 1 for uniform weighting, else the samples trained in the round. 0 leaves a client
            out; where all are 0 no client trained, and the mean is zero.
        out: Receives the mean; must be none of the deltas.

    Returns:
        ``out``.
    """
    first = True
    for delta, weight in zip(deltas, weights, strict=True):
        if weight == 0:
            continue
        if first:
            torch.mul(delta, weight, out=out)
        elif weight == 1:
            out.add_(delta)  # the bits of delta * 1
        else:
            out.add_(delta * weight)
        first = False
    return out.zero_() if first else out.div_(sum(weights))


def mean_norm(norms: Sequence[float], weights: Sequence[int]) -> float:
    """Mean of the clients' finite gradient norms, weighted as their deltas are; NaN where no client has one."""
    known = [pair for pair in zip(norms, weights, strict=True) if pair[1] and math.isfinite(pair[0])]
    return sum(norm * weight for norm, weight in known) / sum(weight for _, weight in known) if known else math.nan
