"""A smooth non-convex problem with known constants: smoothness, gradient noise, heterogeneity of clients.

In rotated coordinates y = Q x, Q orthogonal, so that every block of x is coupled with every other one, client i has

    f_i(x) = sum_j  lambda_j / 2 (y_j - c_j)^2  +  alpha y_j^2 / (1 + y_j^2)  +  zeta / sqrt(d) e_ij sin(y_j)

with signs e_ij = +-1 that sum to zero over the clients. So the mean f of the f_i is the same for every number of
clients and every zeta, and as Q keeps lengths:

- curvature: (y^2 / (1 + y^2))'' lies in [-1/2, 2]. f is smooth with L = max lambda + 2 alpha, each f_i with
  L + zeta / sqrt(d); where min lambda < alpha / 2 neither is convex.
- heterogeneity: |grad f_i - grad f|^2 = zeta^2 / d sum_j cos(y_j)^2, at most zeta^2, which it is at y = 0.
- noise: a stochastic gradient is the exact one and sigma / sqrt(d) xi, xi normal: its variance is sigma^2.
- f >= 0, so f(x) bounds the gap to the least value.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Constants:
    """The constants in the theorem.

    Args:
        scalars: d, a multiple of ``blocks``; dimensionless, like everything here.
        blocks: D, blocks of equal size.
        curvature: Smallest and largest lambda; the others are evenly spaced in between.
        bump: alpha, the magnitude of the non-convex part.
        noise: sigma, the standard deviation of a stochastic gradient.
    """

    scalars: int = 64
    blocks: int = 4
    curvature: tuple[float, float] = (0.25, 1.0)
    bump: float = 1.0
    noise: float = 24.0

    @property
    def smoothness(self) -> float:
        """L of f."""
        return self.curvature[1] + 2 * self.bump

    def client_smoothness(self, heterogeneity: float) -> float:
        """L of every f_i."""
        return self.smoothness + heterogeneity / math.sqrt(self.scalars)


class Problem:
    """Replicas of the problem for one number of clients. They share Q and lambda; each has its own c, e and start.

    A point is a tensor of shape (rows, d): the replicas with the first zeta, then the same replicas with the next.

    Args:
        constants: Constants of the problem.
        heterogeneity: Each zeta, a bound on the root mean square distance of client gradients from their mean.
        clients: N, even.
        replicas: Number of replicas per zeta.
        seed: Seed for everything random except gradient noise; c and the start do not depend on N.
    """

    def __init__(
        self, constants: Constants, *, heterogeneity: Sequence[float], clients: int, replicas: int, seed: int
    ) -> None:
        if clients % 2:
            raise ValueError(f"clients = {clients}: an even number is needed, that the signs sum to zero")
        self.constants, self.heterogeneity, self.clients = constants, tuple(heterogeneity), clients
        draw, d = torch.Generator().manual_seed(seed), constants.scalars
        self._rotation: Tensor = torch.linalg.qr(torch.randn(d, d, generator=draw, dtype=torch.float64))[0].float()
        self._curvature = torch.linspace(*constants.curvature, d)
        centre = 4 * torch.rand(replicas, d, generator=draw) - 2
        start = torch.randn(replicas, d, generator=draw) @ self._rotation
        signs = 2 * (torch.rand(clients, replicas, d, generator=draw).argsort(dim=0) % 2) - 1
        self._centre, self.start = (value.repeat(len(heterogeneity), 1) for value in (centre, start))
        self._tilts = torch.cat([signs * (zeta / math.sqrt(d)) for zeta in heterogeneity], dim=1)

    def gradient(self, x: Tensor, client: int | None = None) -> Tensor:
        """Exact gradient of f_i, or of f if no client is given, shape (rows, d)."""
        return self._gradient_in_y(x, client) @ self._rotation

    def block_gradient(self, x: Tensor, client: int, block: int) -> Tensor:
        """The part of client ``client``'s exact gradient that belongs to a block, shape (rows, d / D)."""
        return self._gradient_in_y(x, client) @ self._rotation[:, self.slice_of(block)]

    def value(self, x: Tensor, client: int | None = None) -> Tensor:
        """f_i, or f if no client is given, shape (rows,)."""
        y = x @ self._rotation.T
        terms = self._curvature / 2 * (y - self._centre) ** 2 + self.constants.bump * y**2 / (1 + y**2)
        return (terms if client is None else terms + self._tilts[client] * y.sin()).sum(-1)

    def noise(self, steps: int, generator: torch.Generator) -> Tensor:
        """Gradient noise of one block for ``steps`` steps, shape (steps, rows, d / D); the same for every zeta."""
        c, n_zetas = self.constants, len(self.heterogeneity)
        shape = (steps, len(self.start) // n_zetas, c.scalars // c.blocks)
        noise = torch.randn(shape, generator=generator) * (c.noise / math.sqrt(c.scalars))
        return noise.repeat(1, n_zetas, 1)

    def slice_of(self, block: int) -> slice:
        """Which scalars of x form a block."""
        size = self.constants.scalars // self.constants.blocks
        return slice(block * size, (block + 1) * size)

    def model(self) -> RateModel:
        """A fresh model at the start."""
        return RateModel([self.start[:, self.slice_of(block)] for block in range(self.constants.blocks)])

    def _gradient_in_y(self, x: Tensor, client: int | None) -> Tensor:
        y = x @ self._rotation.T
        slope = self._curvature * (y - self._centre) + 2 * self.constants.bump * y / (1 + y * y) ** 2
        return slope if client is None else slope + self._tilts[client] * y.cos()


class RateModel(nn.Module):
    """A point in every row.

    Attributes:
        blocks: One parameter per block, each of shape (rows, d / D).
    """

    def __init__(self, parts: list[Tensor]) -> None:
        super().__init__()
        self.blocks = [nn.Parameter(part.clone()) for part in parts]
        for index, block in enumerate(self.blocks):
            self.register_parameter(f"block{index}", block)

    def point(self) -> Tensor:
        """The point, shape (rows, d)."""
        return torch.cat([block.detach() for block in self.blocks], dim=1)
