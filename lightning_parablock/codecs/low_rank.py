"""Matrices of a block as products of two factors, of which each visit sends one (after PowerSGD, arXiv 1905.13727).

A matrix M, shape (m, n), is left @ right^T with factors of shape (m, r) and (n, r). A visit of the block sends M B,
where B is an orthonormal basis of what the other factor spanned at the last visit; the next one sends M^T B, with B
from the mean of M B; and so on in turn. What is sent is linear in M, so that the mean of the clients' factors is the
factor of their mean M. Each client keeps what the product of its own factor and B leaves out.

Whatever all ranks compute from the same bits (bases and products) is made of elementwise operations in a fixed order,
so that they get the same bits on every processor. A client's own factor is sent to all, and may be a product of
matrices; a run that continues from a checkpoint computes those in flight again, and then all get the new ones.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]
"""Of a block's parameters, in the order of its flat vector."""

TILE_SCALARS = 65_536
"""What a CPU multiplies out at once stays in its cache."""
_GPU_TILE_SCALARS = 1 << 24
"""On a GPU each operation costs time of its own."""
_ATTEMPTS = 3
_DEPENDENT = 1e-6
"""A column of which less than this share remains depends on those before it, up to rounding."""


@dataclass(frozen=True)
class _Piece:
    """One parameter of a block.

    Attributes:
        part: Its scalars in the block's flat vector.
        rows: m of its matrix; a parameter with more than two dimensions has its first one as rows.
        columns: n of its matrix.
        rank: r; 0 where it travels whole.
    """

    part: slice
    rows: int
    columns: int
    rank: int

    def carried(self, *, sends_left: bool) -> int:
        """Scalars that a visit sends."""
        if not self.rank:
            return self.part.stop - self.part.start
        return self.rank * (self.rows if sends_left else self.columns)


@dataclass(frozen=True)
class Bases:
    """On what a visit of a block projects its matrices, the same at all ranks.

    Attributes:
        sends_left: Whether the visit sends M B, the left factor, and not M^T B, the right one.
        vectors: B of each matrix that has factors, orthonormal columns on the host: shape (n, r), or (m, r).
    """

    sends_left: bool
    vectors: tuple[Tensor, ...]


class FactorLayout:
    """How a block of these parameters travels.

    Args:
        shapes: Of its parameters.
        rank: r, where that makes the two factors together at most as large as the matrix; others travel whole.
    """

    def __init__(self, shapes: Shapes, rank: int) -> None:
        self._pieces = list[_Piece]()
        first = 0
        for shape in shapes:
            numel, rows = math.prod(shape), shape[0] if shape else 1
            columns = numel // rows if rows else 0
            has_factors = len(shape) > 1 and 0 < rank * (rows + columns) <= numel
            self._pieces.append(_Piece(slice(first, first + numel), rows, columns, rank if has_factors else 0))
            first += numel
        self.numel = first

    def carried(self, *, sends_left: bool) -> int:
        """Scalars that a visit sends."""
        return sum(piece.carried(sends_left=sends_left) for piece in self._pieces)

    @property
    def most_carried(self) -> int:
        """Scalars of the larger of two visits."""
        return max(self.carried(sends_left=True), self.carried(sends_left=False))

    @property
    def has_factors(self) -> bool:
        """Whether any matrix has factors; otherwise everything travels whole."""
        return bool(self._with_factors)

    def first_bases(self, block: int) -> Bases:
        """Those of a block that no exchange has told anything of: the same in every run.

        Args:
            block: Its index.
        """
        found = [
            orthonormal(_signs(piece.columns, piece.rank, block, place), block, place)
            for place, piece in enumerate(self._with_factors)
        ]
        return Bases(True, tuple(found))

    def next_bases(self, block: int, bases: Bases, mean: Tensor) -> Bases:
        """Those of the visit after an exchange; unchanged where that brought nothing.

        Args:
            block: Index of the block.
            bases: Those of the exchange.
            mean: What it brought, shape (carried,), float32, on the host.
        """
        if not mean.count_nonzero():
            return bases
        factors = [factor for piece, factor in self._sent(bases, mean) if piece.rank]
        found = tuple(orthonormal(factor, block, place) for place, factor in enumerate(factors))
        return Bases(not bases.sends_left, found)

    def project(
        self,
        bases: Bases,
        wanted: Callable[[slice], Tensor],
        leave: Callable[[slice, Tensor], None],
        device: torch.device | None = None,
    ) -> Tensor:
        """What a client sends; one parameter after the other.

        Args:
            bases: Those of the visit.
            wanted: Returns the values that are to arrive of some of the block's scalars, float32; they are changed.
            leave: Receives what is left out of them.
            device: Where the values are; None for the host.

        Returns:
            Shape (carried,), on the device.
        """
        carried = self.carried(sends_left=bases.sends_left)
        sent = torch.empty(carried, dtype=torch.float32, device="cpu" if device is None else device)
        vectors = iter(bases.vectors)
        for piece, into in self._sent(bases, sent):
            values = wanted(piece.part)
            if piece.rank:
                matrix, basis = values.view(piece.rows, piece.columns), next(vectors).to(sent.device)
                torch.matmul(matrix if bases.sends_left else matrix.T, basis, out=into)
                for rows, product in _products(*_left_and_right(bases, into, basis)):
                    matrix[rows] -= product
            else:
                into.copy_(values)
                values.zero_()
            leave(piece.part, values)
        return sent

    def expand(self, bases: Bases, sent: Tensor) -> Tensor:
        """The block's values that a visit brings, shape (numel,), of what was sent, shape (carried,)."""
        values, vectors = sent.new_empty(self.numel), iter(bases.vectors)
        for piece, factor in self._sent(bases, sent):
            into = values[piece.part]
            if not piece.rank:
                into.copy_(factor)
                continue
            matrix, basis = into.view(piece.rows, piece.columns), next(vectors).to(sent.device)
            for rows, product in _products(*_left_and_right(bases, factor, basis)):
                matrix[rows] = product
        return values

    @property
    def _with_factors(self) -> list[_Piece]:
        return [piece for piece in self._pieces if piece.rank]

    def _sent(self, bases: Bases, sent: Tensor) -> list[tuple[_Piece, Tensor]]:
        """Each parameter with a view of what is sent of it: a factor, shape (m or n, r), or all of its values."""
        sizes = [piece.carried(sends_left=bases.sends_left) for piece in self._pieces]
        parts = zip(self._pieces, sent.split(sizes), strict=True)
        return [(piece, part.view(-1, piece.rank) if piece.rank else part) for piece, part in parts]


def _left_and_right(bases: Bases, factor: Tensor, basis: Tensor) -> tuple[Tensor, Tensor]:
    return (factor, basis) if bases.sends_left else (basis, factor)


def _products(left: Tensor, right: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """left @ right^T, some rows at a time; r products added one after the other for each entry.

    Args:
        left: Shape (m, r), float32.
        right: Shape (n, r), float32.

    Yields:
        Rows, and their values, shape (rows, n), which the next ones overwrite.
    """
    tile_scalars = _GPU_TILE_SCALARS if left.is_cuda else TILE_SCALARS
    n_rows = max(1, tile_scalars // max(1, right.shape[0]))
    of_rank = right.T.contiguous()
    total, product = left.new_empty(2, min(n_rows, left.shape[0]), right.shape[0])
    for first in range(0, left.shape[0], n_rows):
        rows = slice(first, min(first + n_rows, left.shape[0]))
        weights, into, more = left[rows], total[: rows.stop - first], product[: rows.stop - first]
        torch.mul(weights[:, :1], of_rank[0], out=into)
        for column in range(1, right.shape[1]):
            into += torch.mul(weights[:, column : column + 1], of_rank[column], out=more)
        yield rows, into


def orthonormal(columns: Tensor, *seed: int) -> Tensor:
    """An orthonormal basis of what the columns span, by Gram and Schmidt: the same bits on every processor.

    Where columns depend on those before them, the basis is completed from random signs.

    Args:
        columns: Shape (n, r) with r <= n, float32, on the host.
        seed: Of the signs.
    """
    found = list[Tensor]()
    for place in range(columns.shape[1]):
        column = columns[:, place].double()
        for attempt in range(_ATTEMPTS):
            length = _length(column)
            for _ in range(2):  # the second time for what rounding has left
                for other in found:
                    column = column - other * halved_sum(column * other)
            rest = _length(column)
            if not rest <= _DEPENDENT * length:
                column = column / rest
                break
            column = _signs(columns.shape[0], 1, *seed, place, attempt)[:, 0].double()
        else:  # no dimension is left
            column = torch.zeros_like(column)
        found.append(column)
    return torch.stack(found, dim=1).float()


def halved_sum(values: Tensor) -> Tensor:
    """The sum of a vector, by adding its second half to its first one again and again; shape ()."""
    n = 1 << max(0, values.numel() - 1).bit_length()
    padded = torch.nn.functional.pad(values, (0, n - values.numel()))
    while n > 1:
        n //= 2
        padded = padded[:n] + padded[n:]
    return padded[0]


def _length(column: Tensor) -> Tensor:
    return halved_sum(column * column).sqrt()


def _signs(rows: int, columns: int, *seed: int) -> Tensor:
    """Random 1 and -1, shape (rows, columns), float32: bits of a generator that are the same everywhere."""
    generator = torch.Generator(device="cpu").manual_seed(_mixed(seed))
    drawn = torch.randint(2, (rows, columns), generator=generator, dtype=torch.int64, device="cpu")
    return (2 * drawn - 1).to(torch.float32)


def _mixed(seed: Sequence[int]) -> int:
    mixed = 0
    for one in seed:
        mixed = (mixed * 1_000_003 + one + 1) % (1 << 63)
    return mixed
