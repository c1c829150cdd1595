"""The clients of a run: which rank hosts which, and which of them train in which round."""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lightning_parablock.seeds import derive_seed
from lightning_parablock.settings import Availability, CohortSampling


@dataclass(frozen=True)
class Cohorts:
    """Draws the cohort of each round: the same on every rank, however many ranks there are.

    Attributes:
        n_clients: Number of clients, which are numbered from 0.
        size: Number of clients that train in a round; None for all that can be reached.
        sampling: "uniform"; "size", in proportion to ``samples``, without replacement; "rotation", in turn.
        seed: The run's seed.
        samples: Number of training samples per client, for "size".
        availability: Which clients can be reached when, see :data:`~lightning_parablock.settings.Availability`.
        members_at: Round -> ids of the clients that are members in it, ascending; None for all clients in every round.
    """

    n_clients: int
    size: int | None = None
    sampling: CohortSampling = "uniform"
    seed: int = 0
    samples: tuple[int, ...] = ()
    availability: Availability = ()
    members_at: Callable[[int], Sequence[int]] | None = None

    def of_round(self, round_index: int) -> tuple[int, ...]:
        """Ids of the clients that train in the round, ascending; fewer than ``size`` where fewer can be reached."""
        available = range(self.n_clients) if self.members_at is None else self.members_at(round_index)
        if self.availability:
            available = self.availability[round_index % len(self.availability)]
        if self.size is None or self.size >= len(available):
            return tuple(available)
        if self.sampling == "rotation":
            first = round_index * self.size
            return tuple(sorted(available[(first + i) % len(available)] for i in range(self.size)))
        draw = random.Random(derive_seed(self.seed, "cohort of round", round_index))
        if self.sampling == "size":
            return _by_size([(client, self.samples[client]) for client in available], self.size, draw)
        return tuple(sorted(draw.sample(available, self.size)))


def _by_size(samples: Sequence[tuple[int, int]], size: int, draw: random.Random) -> tuple[int, ...]:
    """Each draw is in proportion to the samples of the clients that are left (Efraimidis and Spirakis, 2006)."""
    keys = sorted((-math.log(1 - draw.random()) / n, client) for client, n in samples)
    return tuple(sorted(client for _, client in keys[:size]))


def hosted_clients(n_clients: int, n_ranks: int) -> list[list[int]]:
    """The ids of the clients that each rank hosts: consecutive ids, in numbers that differ by at most one."""
    cuts = [n_clients * rank // n_ranks for rank in range(n_ranks + 1)]
    return [list(range(low, high)) for low, high in itertools.pairwise(cuts)]


def turns_of_a_round(cohort: int | None, hosted: Sequence[Sequence[int]]) -> int:
    """Turns per round on every rank: the most clients that any rank may have to train; ranks with fewer idle."""
    most = max(map(len, hosted))
    return most if cohort is None else min(most, cohort)
