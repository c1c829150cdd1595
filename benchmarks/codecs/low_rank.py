"""The low-rank codec without a transport: what it would send of given deltas, and its speed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.harness.clock import timed
from lightning_parablock.codecs.feedback import ClientBlock
from lightning_parablock.codecs.low_rank import Bases, FactorLayout, Shapes
from lightning_parablock.regroup.keys import Key
from lightning_parablock.server.aggregation import Received

SHAPES = ((576, 576), (1536, 576), (49_152, 576))
"""Matrices of SmolLM2-135M: of attention, of an MLP, the embedding."""


class FactorsBeside:
    """What clients would send of the deltas of whole blocks as factors, and leave out.

    Args:
        shapes: Of each block's parameters.
        rank: Columns of a factor.
    """

    def __init__(self, shapes: Sequence[Shapes], rank: int) -> None:
        self._layouts = [FactorLayout(of_block, rank) for of_block in shapes]
        self._bases: dict[int, Bases] = {}
        self._next: dict[Key, Bases] = {}
        self._left_out: dict[ClientBlock, Tensor] = {}

    def mean(self, key: Key, received: Mapping[int, Received], part: slice) -> Tensor:
        """The mean of what is sent, shape (scalars,); the part is the whole block."""
        del part
        block = key[1]
        layout = self._layouts[block]
        bases = self._bases.setdefault(block, layout.first_bases(block))
        total = torch.zeros(layout.carried(sends_left=bases.sends_left))
        for client, one in sorted(received.items()):
            wanted = one.read().clone()
            if (client, block) in self._left_out:
                wanted += self._left_out[client, block]
            total += one.weight * project(layout, bases, wanted)
            self._left_out[client, block] = wanted
        mean = total / sum(one.weight for one in received.values())
        self._next[key] = layout.next_bases(block, bases, mean)
        return layout.expand(bases, mean)

    def left_out(self, client: int, block: int) -> Tensor:
        """What a client's visits of a block have left out so far."""
        return self._left_out[client, block]

    def settle(self, round_index: int) -> None:
        """The bases of a round's exchanges count from now on."""
        for key in [key for key in self._next if key[0] == round_index]:
            self._bases[key[1]] = self._next.pop(key)


def project(layout: FactorLayout, bases: Bases, wanted: Tensor) -> Tensor:
    """What is sent of a block's values, shape (numel,), which become what is left out."""
    return layout.project(bases, lambda part: wanted[part], lambda part, values: None)


def speed(plan: Mapping[str, Any]) -> list[dict[str, Any]]:
    """GB of the matrix in float32 per second, on one thread, one value per repeat, for each of SHAPES and each rank.

    Args:
        plan: ``ranks``, and ``repeats``, not counting a first one for warm-up.

    Returns:
        Rows with ``shape``, ``rank``, ``sends_left``, ``encode`` (add the residual, project, keep the rest), ``expand``
        (what all ranks make of the mean) and ``next_bases`` (what they project on at the next visit).
    """
    torch.set_num_threads(1)
    return [
        _speed(shape, rank, sends_left=sends_left, repeats=plan["repeats"])
        for shape in SHAPES
        for rank in plan["ranks"]
        for sends_left in (True, False)
    ]


def _speed(shape: tuple[int, int], rank: int, *, sends_left: bool, repeats: int) -> dict[str, Any]:
    layout = FactorLayout([shape], rank)
    delta, wanted = torch.randn(2, layout.numel, generator=torch.Generator().manual_seed(0))
    bases = layout.first_bases(0)
    if not sends_left:
        bases = layout.next_bases(0, bases, project(layout, bases, delta.clone()))
    sent = project(layout, bases, delta.clone())
    works: dict[str, Callable[[], Any]] = {
        "encode": lambda: project(layout, bases, wanted.add_(delta)),
        "expand": lambda: layout.expand(bases, sent),
        "next_bases": lambda: layout.next_bases(0, bases, sent),
    }
    row: dict[str, Any] = {"shape": list(shape), "rank": rank, "sends_left": sends_left}
    for name, work in works.items():
        seconds = [timed(work) for _ in range(1 + repeats)][1:]
        row[name] = [4 * layout.numel / 1e9 / one for one in seconds]
    return row
