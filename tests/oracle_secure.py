"""Secure sums as one would do them by hand: whole numbers of all clients, added up; no masks, no messages, no parts.

It imports nothing of the package. Scales and steps are exact, in decimals and fractions: tests/masking/oracle.py.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor

from tests.masking.oracle import log_scales, step

RECORD = 1024


@dataclass(frozen=True)
class Told:
    """What an exchange has told of the sizes of a block's values: the sum of l_i of each record, over its clients."""

    logs: list[int]
    n_clients: int


@dataclass(frozen=True)
class Sum:
    """What came out of one exchange: G, what each client's numbers leave out, and what it has told."""

    mean: Tensor
    left: dict[int, Tensor]
    told: Told | None


def secure_sum(
    deltas: dict[int, Tensor],
    residuals: dict[int, Tensor],
    weights: dict[int, int],
    *,
    n_cohort: int,
    width: int,
    before: Told | None,
    numel: int,
) -> Sum:
    """One exchange. Vectors are float32 of the block's size, by client; clients without weight are in none of them.

    ``n_cohort`` counts these clients too, and ``before`` is what the block's newest merged commit has told.
    """
    wanted = {i: (deltas[i] * weights[i] + residuals[i]).numpy() for i in sorted(deltas)}
    if not wanted:
        return Sum(torch.zeros(numel), {}, None)
    logs = [log_scales(u) for u in wanted.values()]
    told = Told([sum(of_record) for of_record in zip(*logs, strict=True)], len(logs))
    used = told if before is None else before
    limit = (2 ** (8 * width - 1) - 1) // n_cohort
    sizes = [step(log, used.n_clients, limit, width) for log in used.logs]
    assert all(Fraction(float(size)) == size for size in sizes)
    of_value = np.repeat(np.array([float(size) for size in sizes]), RECORD)[:numel]
    total, left = np.zeros(numel, dtype=np.int64), dict[int, Tensor]()
    for i, u in wanted.items():
        # A quotient of 24 by 8 bits is a half, or further from it than float64 can round away.
        numbers = np.clip(np.rint(u.astype(np.float64) / of_value), -limit, limit)
        left[i] = torch.from_numpy(u - (numbers * of_value).astype(np.float32))
        total += numbers.astype(np.int64)
    assert abs(total).max() <= 2 ** (8 * width - 1) - 1
    return Sum(torch.from_numpy((total * of_value).astype(np.float32)) / sum(weights.values()), left, told)
