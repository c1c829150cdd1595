"""Matrices as products of two factors, of which each exchange brings one: worked out entry by entry.

It imports nothing of the package. Sums are made by halving and products are added one after the other, since all
clients must get the same bits of them; what a client sends is its own business and may be a product of matrices.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Values = dict[str, Tensor]


@dataclass(frozen=True)
class Told:
    """What the newest merged commit of a block tells: which factor comes next, and what matrices are projected on."""

    left_next: bool
    on: dict[str, Tensor]  # by parameter, columns of length 1


def has_factors(value: Tensor, rank: int) -> bool:
    """Whether a parameter travels as factors."""
    return value.dim() > 1 and 0 < rank * (value.shape[0] + value[0].numel()) <= value.numel()


def at_first(block: int, like: Values, rank: int) -> Told:
    """Before any commit of a block: columns of random signs, made orthonormal."""
    matrices = [name for name, value in like.items() if has_factors(value, rank)]
    on = {
        name: perpendicular(signs(like[name][0].numel(), rank, (block, place)), (block, place))
        for place, name in enumerate(matrices)
    }
    return Told(True, on)


def send(told: Told, wanted: Values) -> tuple[Values, Values]:
    """What a client sends, and what is left."""
    sent: Values = {}
    left: Values = {}
    for name, value in wanted.items():
        if name not in told.on:
            sent[name], left[name] = value.clone(), torch.zeros_like(value)
            continue
        matrix = value.reshape(value.shape[0], -1).clone()
        sent[name] = (matrix if told.left_next else matrix.T) @ told.on[name]
        left[name] = (matrix - product(told, name, sent[name])).view_as(value)
    return sent, left


def receive(told: Told, mean: Values, like: Values) -> Values:
    """G: what all clients make of the mean of the factors."""
    return {n: product(told, n, v).view_as(like[n]) if n in told.on else v for n, v in mean.items()}


def tell(block: int, told: Told, mean: Values) -> Told:
    """What the exchange tells the next one."""
    if not any(bool(value.any()) for value in mean.values()):
        return told
    on = {name: perpendicular(mean[name], (block, place)) for place, name in enumerate(told.on)}
    return Told(not told.left_next, on)


def product(told: Told, name: str, factor: Tensor) -> Tensor:
    """left right^T, the columns' products one after the other."""
    left, right = (factor, told.on[name]) if told.left_next else (told.on[name], factor)
    total = left[:, 0, None] * right[None, :, 0]
    for k in range(1, left.shape[1]):
        total = total + left[:, k, None] * right[None, :, k]
    return total


def perpendicular(columns: Tensor, seed: tuple[int, ...]) -> Tensor:
    """Gram-Schmidt in float64, each column cleaned twice; a column that depends on earlier ones starts from signs."""
    done: list[np.ndarray] = []
    for k, given in enumerate(columns.numpy().T):
        candidates = [given, *(signs(len(given), 1, (*seed, k, attempt)).numpy()[:, 0] for attempt in range(2))]
        for candidate in candidates:
            before = after = candidate.astype(np.float64)
            for other in 2 * done:
                after = after - other * total_of(after * other)
            size = np.sqrt(total_of(after * after))
            if size > 1e-6 * np.sqrt(total_of(before * before)):
                done.append(after / size)
                break
        else:
            done.append(np.zeros(len(given)))
    return torch.from_numpy(np.stack(done, axis=1).astype(np.float32))


def total_of(values: np.ndarray) -> np.float64:
    """The second half onto the first one, until one is left."""
    size = 1
    while size < len(values):
        size *= 2
    values = np.concatenate([values, np.zeros(size - len(values))])
    while len(values) > 1:
        values = values[: len(values) // 2] + values[len(values) // 2 :]
    return values[0]


def signs(rows: int, columns: int, seed: tuple[int, ...]) -> Tensor:
    """1 and -1 from torch's generator, whose whole numbers are the same on every processor."""
    number = 0
    for one in seed:
        number = (number * 1000003 + one + 1) % 2**63
    drawn = torch.randint(0, 2, (rows, columns), generator=torch.Generator().manual_seed(number))
    return torch.where(drawn == 1, 1.0, -1.0)
