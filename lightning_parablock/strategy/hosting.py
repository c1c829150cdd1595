"""How many clients a run has, and which rank hosts which of them."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_parablock.federation.cohorts import hosted_clients, turns_of_a_round
from lightning_parablock.settings import Settings


@dataclass(frozen=True)
class Hosting:
    """The clients of a run on its ranks.

    Attributes:
        by_rank: For each rank the numbers of the clients that it hosts, ascending.
        turns: Turns per round, the same number on every rank.
    """

    by_rank: tuple[tuple[int, ...], ...]
    turns: int

    @classmethod
    def of(cls, settings: Settings, n_ranks: int) -> Hosting:
        """The hosting that follows from the settings and the number of ranks."""
        hosted = hosted_clients(settings.clients or n_ranks, n_ranks)
        return cls(tuple(map(tuple, hosted)), turns_of_a_round(settings.cohort, hosted))

    @property
    def n_clients(self) -> int:
        """Number of clients in all."""
        return sum(map(len, self.by_rank))
