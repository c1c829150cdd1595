"""The jobs of bench_codecs for a low-rank codec that is not built: one factor per visit, or both, simulated.

All clients are in one process, so both ends of an exchange are one function, with the arithmetic of the design in
docs/adr/decisions.md, 23: each client's factor, their mean, each client's residual, and the basis of the next visit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar, cast

import lightning.pytorch as pl
import torch
from torch import Tensor
from typing_extensions import override

from benchmarks.codecs.visits import Residuals, fit, norm
from benchmarks.harness.clock import timed
from lightning_parablock.codecs.feedback import ClientBlock
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Aggregate, MeanAggregator, Received, mean_norm, weighted_mean
from lightning_parablock.server.uploads import Upload

TILE_SCALARS = 65_536
"""What is expanded at once stays in the cache."""
SHAPES = ((576, 576), (1536, 576), (49_152, 576))
"""Matrices of SmolLM2-135M: of attention, of an MLP, the embedding."""


@dataclass(frozen=True)
class LowRank:
    """How a matrix M, shape (m, n), travels; vectors travel as they are.

    Attributes:
        rank: r, columns of a factor.
        factors: "one": M Q or M^T P in turn. "both": M Q, then M^T P with P from the mean of the first, as in PowerSGD.
        decay: Share of what earlier visits left out that is added to the next delta.
    """

    rank: int = 8
    factors: Literal["one", "both"] = "one"
    decay: float = 1.0


@dataclass(frozen=True)
class Basis:
    """What one side of a matrix is projected on, the same at all ranks.

    Attributes:
        vectors: Orthonormal columns, shape (n, r), or (m, r) for the transpose.
        of_transpose: Whether M^T is projected, and not M.
    """

    vectors: Tensor
    of_transpose: bool = False

    def side(self, matrix: Tensor) -> Tensor:
        """The matrix, or its transpose: shape (rows, columns that are projected)."""
        return matrix.T if self.of_transpose else matrix


def orthonormal(columns: Tensor) -> Tensor:
    """An orthonormal basis of what the columns span; same shape and type."""
    return torch.linalg.qr(columns.double())[0].to(columns.dtype)


def expand(factor: Tensor, basis: Tensor, into: Tensor) -> None:
    """Write factor basis^T, one product after the other for each entry: the same bits on every processor.

    Args:
        factor: Shape (rows, r).
        basis: Shape (columns, r).
        into: Shape (rows, columns), any strides.
    """
    if into.stride(1) != 1:  # rows must be contiguous
        factor, basis, into = basis, factor, into.T
    rows = max(1, TILE_SCALARS // into.shape[1])
    vectors = basis.T.contiguous()
    product = torch.empty(rows, into.shape[1])
    for first in range(0, into.shape[0], rows):
        tile, weights = into[first : first + rows], factor[first : first + rows]
        torch.mul(weights[:, :1], vectors[0], out=tile)
        for column in range(1, vectors.shape[0]):
            tile += torch.mul(weights[:, column : column + 1], vectors[column], out=product[: len(tile)])


class FactorMean(MeanAggregator):
    """The mean of what clients send of their deltas; for whole blocks at once, all clients in this process.

    Args:
        shapes: Of each block's parameters.
        how: Rank, factors and feedback.
        seed: Of the first bases.

    Attributes:
        residuals: Norm of what had been left out of a block before an exchange, by round and client.
        shares: Share of the squares of delta and residual that was sent, likewise.
        scalars: Scalars that a client has sent in an exchange, by round.
    """

    def __init__(self, shapes: Sequence[Sequence[torch.Size]], how: LowRank, seed: int) -> None:
        super().__init__()
        self._shapes, self._how = shapes, how
        self._random = torch.Generator().manual_seed(seed)
        self._bases: dict[int, list[Basis | None]] = {
            block: [self._first_basis(shape) for shape in of_block] for block, of_block in enumerate(shapes)
        }
        self._next: dict[Key, list[Basis | None]] = {}
        self._left_out: dict[ClientBlock, Tensor] = {}
        self.residuals: dict[tuple[int, int], float] = {}
        self.shares: dict[tuple[int, int], float] = {}
        self.scalars: dict[int, int] = {}

    def left_out(self, client: int, block: int) -> Tensor:
        """What a client's visits of a block have left out so far, shape (numel of the block,)."""
        return self._left_out[client, block]

    @override
    def settle(self, round_index: int) -> None:
        for key in [key for key in self._next if key[0] == round_index]:
            self._bases[key[1]] = self._next.pop(key)

    @override
    @torch.no_grad()
    def aggregate(self, key: Key, received: Mapping[int, Received], part: slice) -> Aggregate:
        round_index, block = key
        mean = self._buffer(part.stop - part.start).zero_()
        clients = [client for client in sorted(received) if received[client].weight]
        weights = [received[client].weight for client in clients]
        wanted = {client: self._wanted(round_index, block, client, received[client].read()) for client in clients}
        squares = {client: norm(values) ** 2 for client, values in wanted.items()}
        parts = [self._parts(block, wanted[client]) for client in clients]
        bases: list[Basis | None] = []
        self.scalars[round_index] = 0
        for index, into in enumerate(self._parts(block, mean)):
            basis = self._bases[block][index]
            n_sent, after = self._send(basis, [one[index] for one in parts], weights, into)
            self.scalars[round_index] += n_sent
            bases.append(after)
        self._next[key] = bases
        for client in clients:
            self._left_out[client, block] = wanted[client]
            kept = norm(wanted[client]) ** 2
            self.shares[round_index, client] = 1 - kept / squares[client] if squares[client] else 0.0
        return Aggregate(mean, mean_norm([received[client].gradient_norm for client in clients], weights))

    def _wanted(self, round_index: int, block: int, client: int, delta: Tensor) -> Tensor:
        left_out = self._left_out.get((client, block))
        self.residuals[round_index, client] = 0.0 if left_out is None else norm(left_out)
        return delta.clone() if left_out is None else left_out.mul_(self._how.decay).add_(delta)

    def _send(
        self, basis: Basis | None, wanted: list[Tensor], weights: list[int], into: Tensor
    ) -> tuple[int, Basis | None]:
        """Write the mean of what is sent, and leave in ``wanted`` what is not.

        Returns:
            Scalars that each client sends, and the basis of the next visit.
        """
        if not wanted:
            return 0, basis
        if basis is None:
            weighted_mean(wanted, weights, into)
            for values in wanted:
                values.zero_()
            return into.numel(), None
        factors, mean, after = self._project(basis, wanted, weights)
        n_sent = mean.numel()
        if self._how.factors == "both":
            basis = after
            factors, mean, after = self._project(basis, wanted, weights)
            n_sent += mean.numel()
        for values, factor in zip(wanted, factors, strict=True):
            basis.side(values).sub_(factor @ basis.vectors.T)
        expand(mean, basis.vectors, basis.side(into))
        return n_sent, after

    def _project(self, basis: Basis, wanted: list[Tensor], weights: list[int]) -> tuple[list[Tensor], Tensor, Basis]:
        """The clients' factors, their mean, and the basis that it becomes."""
        factors = [basis.side(values) @ basis.vectors for values in wanted]
        mean = weighted_mean(factors, weights, torch.empty_like(factors[0]))
        return factors, mean, Basis(orthonormal(mean), of_transpose=not basis.of_transpose)

    def _first_basis(self, shape: torch.Size) -> Basis | None:
        if len(shape) < 2:
            return None
        rank = min(self._how.rank, *shape)
        return Basis(orthonormal(torch.randn(shape[1], rank, generator=self._random)))

    def _parts(self, block: int, flat: Tensor) -> list[Tensor]:
        shapes = self._shapes[block]
        return [part.view(s) for part, s in zip(flat.split([s.numel() for s in shapes]), shapes, strict=True)]


MeanT = TypeVar("MeanT", bound=MeanAggregator)
Shapes = Sequence[Sequence[torch.Size]]
"""Of the parameters of each block."""


class OtherMean(Residuals, Generic[MeanT]):
    """Residuals of a run in which another mean takes the place of the transport's.

    Args:
        make: Makes it, from the shapes of each block's parameters.
    """

    def __init__(self, make: Callable[[Shapes], MeanT]) -> None:
        super().__init__()
        self._make = make
        self._made: MeanT | None = None

    @property
    def mean(self) -> MeanT:
        """The mean, once the first step has begun."""
        assert self._made is not None
        return self._made

    @override
    def on_train_batch_start(self, trainer: pl.Trainer, *_: Any, **__: Any) -> None:
        """Called by Lightning."""
        if self._made is None:
            engine: RoundEngine = trainer.strategy.session.engine  # type: ignore[attr-defined]
            flat, transport = engine.flat, cast(Any, engine.transport)
            self._made = self._make([[p.shape for p in flat.parameters(block)] for block in range(len(flat.blocks))])
            transport._aggregator = self._made
        super().on_train_batch_start(trainer)


class FactorResiduals(OtherMean[FactorMean]):
    """Norms as of :class:`Residuals`, of a run whose exchanges carry factors."""

    @override
    def _facts(self, round_index: int, client: int, upload: Upload) -> dict[str, Any]:
        scalars = self.mean.scalars[round_index]
        return {
            "delta": norm(upload.delta),
            "residual": self.mean.residuals.get((round_index, client), 0.0),
            "sent": self.mean.shares.get((round_index, client), 0.0),
            "times_fewer": upload.delta.numel() / scalars if scalars else 0.0,
        }


def train(plan: Mapping[str, Any]) -> dict[str, Any]:
    """As :func:`benchmarks.codecs.visits.train`, with ``settings`` of :class:`LowRank`.

    Rows also contain ``sent``, the share of the squares of delta and residual that was sent, and ``times_fewer``, the
    block's scalars over those sent by a client.
    """
    how = LowRank(**plan["settings"])
    return fit(
        {**plan, "compression": "none", "settings": {}},
        FactorResiduals(lambda shapes: FactorMean(shapes, how, plan["seed"])),
    )


def speed(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """GB of the matrix in float32 per second, on one thread, one value per repeat, for each of SHAPES and each rank.

    Args:
        plan: ``ranks``, and ``repeats``, not counting a first one for warm-up.

    Returns:
        Rows with ``shape``, ``rank``, ``of_transpose``, ``encode`` (add the residual, project, keep the rest),
        ``expand`` (what all ranks make of the mean) and ``orthonormal`` (the next basis).
    """
    torch.set_num_threads(1)
    return [
        _speed(shape, rank, of_transpose=of_transpose, repeats=plan["repeats"])
        for shape in SHAPES
        for rank in plan["ranks"]
        for of_transpose in (False, True)
    ]


def _speed(shape: tuple[int, int], rank: int, *, of_transpose: bool, repeats: int) -> dict[str, Any]:
    delta, left_out, into = torch.randn(3, *shape, generator=torch.Generator().manual_seed(0))
    basis = Basis(orthonormal(torch.randn(shape[0 if of_transpose else 1], rank)), of_transpose)
    factor = basis.side(delta) @ basis.vectors
    works: dict[str, Callable[[], Any]] = {
        "encode": lambda: _encode(basis, delta, left_out),
        "expand": lambda: expand(factor, basis.vectors, basis.side(into)),
        "orthonormal": lambda: orthonormal(factor),
    }
    row: dict[str, Any] = {"shape": list(shape), "rank": rank, "of_transpose": of_transpose}
    for name, work in works.items():
        seconds = [timed(work) for _ in range(1 + repeats)][1:]
        row[name] = [4 * delta.numel() / 1e9 / one for one in seconds]
    return row


def _encode(basis: Basis, delta: Tensor, left_out: Tensor) -> Tensor:
    side = basis.side(left_out.add_(delta))
    factor = side @ basis.vectors
    side.sub_(factor @ basis.vectors.T)
    return factor
