"""How large a block's values are, record by record, and the steps in which all clients count them.

A record is 1024 scalars, counted from the block's start, as in the codecs. Every client states l_i, the logarithm of
the size of its own values; their mean over the clients gives the step, so no client's size is learned, and the sums of
one exchange serve the next. A step must not be taken from a commit: a sum that saturated would shrink the next step.

Everything here gives the same bits on every machine and for every cut of the block.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from lightning_parablock.codecs.compression import RECORD_SCALARS
from lightning_parablock.errors import NonFiniteError, SecureSumError
from lightning_parablock.masking.logarithms import UNITS, half_logarithms, powers

PIECE_SCALARS = 128 * RECORD_SCALARS
"""Values whose squares fit into a core's cache."""
LEAST_LOG = -100 * UNITS
"""l_i of a record of zeros in a block of zeros."""
MOST_LOG = 128 * UNITS - 1
"""No float32 is larger. The sum over 256 clients fits into 31 bits."""

_MULTIPLES = {1: 3, 2: 16}
"""m by bytes per value: how many times the typical size of a value the largest integer stands for."""
_FLOOR = 2.0**-200  # squared, like the sizes below
_BLOCK_SHARE = 256.0


@dataclass(frozen=True)
class Scale:
    """The sizes of a block's values, as an exchange has told them: it belongs to the version that the exchange made.

    Attributes:
        sum_of_logs: Sum of the clients' l_i, shape (n_records,), int32, on the host.
        clients: Clients in that sum, at least one.
    """

    sum_of_logs: Tensor
    clients: int


def n_records(scalars: int) -> int:
    """How many records a part has that begins where a record does; the last one may be short."""
    return -(-scalars // RECORD_SCALARS)


def log_scales(parts: Iterable[Tensor]) -> Tensor:
    """l_i = log2 max(rms of the record, 1/16 of the rms of the block, 2**-100), in units of 2**-16.

    The squares are exact in float64. Within a record scalar k is added to scalar k + 512, of these 512 sums sum k to
    sum k + 256, and so on; a short record is filled up with zeros. The sums of the records are added exactly, and
    rounded once (Shewchuk's algorithm, ``math.fsum``).

    Args:
        parts: u of a whole block, cut where records begin, shape (n,) each, float32, on the host. A part is read before
            the next one is asked for.

    Returns:
        Shape (n_records,), int32, on the host.

    Raises:
        NonFiniteError: a value is NaN or infinite.
    """
    numel, found = 0, [torch.zeros(0, dtype=torch.float64, device="cpu")]
    squares = torch.empty(2, PIECE_SCALARS // 2, dtype=torch.float64, device="cpu")
    for part in parts:
        numel += part.numel()
        found += [_sums_of_squares(piece, squares) for piece in part.detach().split(PIECE_SCALARS)]
    sums = torch.cat(found).numpy()
    total = math.fsum(sums.tolist())
    if not math.isfinite(total):
        raise NonFiniteError("a contribution to a secure sum contains NaN or infinity")
    counts = np.full(sums.shape, float(RECORD_SCALARS))
    counts[-1:] = numel - RECORD_SCALARS * (len(sums) - 1)
    least = max(total / max(1, numel) / _BLOCK_SHARE, _FLOOR)
    logs = half_logarithms(np.maximum(sums / counts, least))
    return torch.from_numpy(np.minimum(logs, MOST_LOG).astype(np.int32))


def steps(sum_of_logs: Tensor, n_clients: int, limit: int, bytes_per_value: int) -> Tensor:
    """The step of each record: m r / L, where r = 2**(mean of l_i over the clients), m = 3 (one byte) or 16 (two).

    The mean is rounded to a whole l_i, half up, and the step to the precision of bfloat16: a client's integer times a
    step, and the sum of all integers times a step, are then exact in float32.

    Args:
        sum_of_logs: Sum of the clients' l_i, shape (n_records,), int32, on the host.
        n_clients: Clients in that sum.
        limit: L of the exchange in which the steps are used, whose number of clients may be another one.
        bytes_per_value: B of that exchange.

    Returns:
        Shape (n_records,), float32, on the host.

    Raises:
        SecureSumError: no clients could have such scales.
    """
    means = (2 * sum_of_logs.numpy().astype(np.int64) + n_clients) // (2 * n_clients)
    if means.size and (means.min() < LEAST_LOG or means.max() > MOST_LOG):
        raise SecureSumError(
            f"the scales of {n_clients} clients have means from {means.min() / UNITS:.1f} to "
            f"{means.max() / UNITS:.1f}, which no values have; the masks of a site did not cancel, or a site does not "
            "follow the protocol"
        )
    exact = powers(means, _MULTIPLES[bytes_per_value] / limit)
    return torch.from_numpy(exact.astype(np.float32)).bfloat16().float()


def _sums_of_squares(values: Tensor, squares: Tensor) -> Tensor:
    """Of each record of a piece, shape (n_records,), float64; the squares are overwritten."""
    missing, width = -values.numel() % RECORD_SCALARS, RECORD_SCALARS // 2
    records = (torch.nn.functional.pad(values, (0, missing)) if missing else values).view(-1, 2, width)
    sums, second = squares[:, : len(records) * width].view(2, -1, width)
    sums.copy_(records[:, 0]).mul_(sums)
    sums.addcmul_(second.copy_(records[:, 1]), second)  # the product is exact, whether it is rounded or not
    while width > 1:
        width //= 2
        sums[:, :width].add_(sums[:, width : 2 * width])
    return sums[:, 0].clone()
