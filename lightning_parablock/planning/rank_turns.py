"""How many clients each rank trains in a round, where cohorts are drawn or the clients of a rank take turns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.planning.traffic import Deltas

HORIZON_ROUNDS = 256
"""So many rounds are looked at, and at least one pass over the availability trace."""


@dataclass(frozen=True)
class RankTurns:
    """The first rounds of a run.

    Attributes:
        trained: For each kind of round that there is, how many clients of its cohort each rank hosts.
    """

    trained: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, cohorts: Cohorts, by_rank: Sequence[Sequence[int]]) -> RankTurns:
        """The rounds with these cohorts, of which each rank hosts those clients; the same on every rank."""
        kinds: set[tuple[int, ...]] = set()
        for t in range(max(HORIZON_ROUNDS, len(cohorts.availability))):
            cohort = set(cohorts.of_round(t))
            kinds.add(tuple(len(cohort.intersection(clients)) for clients in by_rank))
        return cls(tuple(sorted(kinds)))

    def shortest_s(self, step_s: Sequence[float]) -> float:
        """Seconds that one local step of every client takes in the shortest round; its slowest rank counts.

        Args:
            step_s: Seconds of one local step on each rank.
        """
        return min(max(n * s for n, s in zip(counts, step_s, strict=True)) for counts in self.trained)

    @property
    def most_deltas(self) -> list[Deltas]:
        """The most deltas that each rank sends in a round, and the most that others send to it."""
        own = [max(counts) for counts in zip(*self.trained, strict=True)]
        others = [max(sum(counts) - counts[rank] for counts in self.trained) for rank in range(len(own))]
        return [Deltas(*each) for each in zip(own, others, strict=True)]
