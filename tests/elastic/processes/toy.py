"""What the sites of these tests train: a small network by SGD, each site on data that follow from its name."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

K = 4
BATCHES = 20
LR = 0.05
WIDTH_IN = 8


def network(width: int) -> nn.Sequential:
    """Three layers, each of them a block; the one in the middle has width * (width + 1) values."""
    torch.manual_seed(0)
    layers = [nn.Linear(WIDTH_IN, width), nn.Linear(width, width), nn.Linear(width, 1)]
    return nn.Sequential(layers[0], nn.Tanh(), layers[1], nn.Tanh(), layers[2])


BLOCKS = ("0", "2", "4")
"""Names of the layers."""


def batch_size(site: str) -> int:
    """Sites weigh differently."""
    return 3 + zlib.crc32(site.encode()) % 4


def data_of(site: str) -> tuple[Tensor, Tensor]:
    """Inputs and targets of all batches of an epoch, in order."""
    generator = torch.Generator().manual_seed(zlib.crc32(site.encode()))
    x = torch.randn(BATCHES * batch_size(site), WIDTH_IN, generator=generator)
    return x, x.sin().sum(1, keepdim=True)


def loss_of(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Mean squared error."""
    return ((model(x) - y) ** 2).mean()


class Replica:
    """Repeats the local steps of all sites, for the plain loop.

    Args:
        width: See :func:`network`.
        sites: Name of each client's site.
        rows: Which rows a client's step has had, by client and step, where they were not taken in their order.
    """

    def __init__(self, width: int, sites: dict[int, str], rows: dict[int, dict[int, list[int]]] | None = None) -> None:
        self._model = network(width)
        self._blocks = [list(self._model.get_submodule(name).parameters()) for name in BLOCKS]
        self._batches = {
            client: list(zip(*(part.split(batch_size(site)) for part in data_of(site)), strict=True))
            for client, site in sites.items()
        }
        self._data = {client: data_of(site) for client, site in sites.items()}
        self._rows = {} if rows is None else rows

    def initial(self) -> list[Tensor]:
        """The model before the first round, as one vector per block."""
        return [torch.cat([p.detach().reshape(-1) for p in block]) for block in self._blocks]

    def step(self, x: Tensor, held: Sequence[Tensor], block: int, client: int, step: int) -> Tensor:
        """The block's vector after one step; see ``Plan.step``."""
        for index, parameters in enumerate(self._blocks):
            self._show(parameters, x if index == block else held[index])
            for parameter in parameters:
                parameter.requires_grad_(index == block)
        optimizer = torch.optim.SGD(self._blocks[block], lr=LR)
        optimizer.zero_grad()
        rows = self._rows.get(client, {}).get(step)
        batch = self._batches[client][step % BATCHES] if rows is None else [part[rows] for part in self._data[client]]
        loss_of(self._model, *batch).backward()
        optimizer.step()
        return torch.cat([p.detach().reshape(-1) for p in self._blocks[block]])

    @torch.no_grad()
    def _show(self, parameters: Sequence[nn.Parameter], values: Tensor) -> None:
        at = 0
        for parameter in parameters:
            parameter.copy_(values[at : at + parameter.numel()].view_as(parameter))
            at += parameter.numel()
