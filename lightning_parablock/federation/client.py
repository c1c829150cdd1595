"""What belongs to one client: its version of every block and its own deltas that are not committed yet."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_parablock.settings import InFlightValue

Tag = tuple[int, tuple[tuple[int, int], ...]]
"""Which held value of a block: its version, and (client, round) of each delta on top of it, oldest first."""


@dataclass(frozen=True)
class InFlight:
    """A delta of the client that was submitted in ``round`` on ``block`` and is not merged yet.

    The delta's shape is (numel of the block,).
    """

    round: int
    block: int
    delta: Tensor


@dataclass
class Client:
    """One client's state between its local steps (docs/method.md, "A round").

    Attributes:
        id: The client's number, 0 to N - 1.
        versions: For each block the number of commits merged into it; W of the client is this version.
        in_flight: Own deltas that are submitted and not merged, oldest first; none of weight 0.
        start: The value s from which the delta of the running round is measured, shape (numel,); None between rounds.
        samples: Number of samples it has trained on in the running round; 0 if it has not trained at all.
        gradient_norm: Gradient norm of the round's block at the first local step, where the block order needs it.
    """

    id: int
    versions: list[int]
    in_flight: list[InFlight] = field(default_factory=list[InFlight])
    start: Tensor | None = None
    samples: int = 0
    gradient_norm: float = 0.0

    def tag(self, block: int, in_flight_value: InFlightValue) -> Tag:
        """What :meth:`held` returns for the block, named instead of computed."""
        local = in_flight_value == "local"
        return self.versions[block], tuple((self.id, d.round) for d in self.in_flight if local and d.block == block)

    @torch.no_grad()
    def held(self, block: int, committed: Tensor, in_flight_value: InFlightValue) -> Tensor:
        """held_i(b) = ((W[b] + d_1) + d_2) + ..., oldest first ("local"), or W[b] ("anchor").

        Args:
            block: Index of the block.
            committed: W[b] at this client's version, shape (numel,); not changed, and returned itself where nothing
                is added.
            in_flight_value: Which of the two.
        """
        value = committed
        for delta in self._own(block) if in_flight_value == "local" else ():
            value = value + delta
        return value

    def merge(self, round_index: int, versions: list[int]) -> None:
        """Record that all commits of ``round_index`` are now part of W, which has these versions."""
        self.versions = versions
        if self.in_flight:
            self.in_flight = [d for d in self.in_flight if d.round != round_index]

    def _own(self, block: int) -> Iterable[Tensor]:
        return (d.delta for d in self.in_flight if d.block == block)
