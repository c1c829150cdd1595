"""What sites of the simulation train: blocks of a few numbers, and who trains which block in a round.

Shared by the simulated sites and the oracle, as a data set would be; neither shares anything else with the other.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Values = NDArray[np.float64]

M = 6  # numbers per block: divisible among 1, 2, 3 and 6 servers, not among 4 or 5
MU, LR = 0.9, 0.7  # of the server optimizer "nesterov"


@dataclass(frozen=True)
class Task:
    """Settings that are the same at all sites.

    Attributes:
        warmup_rounds: How many rounds, from round 0 on, have no delay.
        order: "sequential", "random" or "cyclic".
        cohort: How many clients train in a round; None for all.
        is_local: Whether a client works with its own progress on top of what is committed.
    """

    seed: int = 0
    n_blocks: int = 2
    local_steps: int = 2
    delay_steps: int = 2
    warmup_rounds: int = 0
    n_rounds: int = 8
    topology: str = "star"
    server: str = "sgd"
    is_lossy: bool = False
    order: str = "sequential"
    cohort: int | None = None
    is_local: bool = True
    min_clients: int = 1

    @property
    def has_server_state(self) -> bool:
        return self.is_lossy or self.server == "nesterov"


def initial(n_blocks: int, checkpoint_round: int = -1) -> Values:
    """W at first, or of the checkpoint at the start of a round; shape (n_blocks, M)."""
    return np.array([[math.sin(5 * b + k + 0.37 * checkpoint_round) for k in range(M)] for b in range(n_blocks)])


@lru_cache(maxsize=4096)
def _noise(block: int, client: int, step: int) -> Values:
    return np.array([math.cos(11.3 * client + 2.1 * step + 4.7 * k + 1.9 * block) for k in range(M)])


def local_step(values: Values, block: int, client: int, step: int) -> Values:
    """The block after one more step of a client; it depends on all other blocks."""
    x = values[block]
    others = values.sum() - x.sum()
    return x - 0.11 * (x - 0.4 * client) + 0.03 * math.sin(others) + 0.06 * _noise(block, client, step)


def samples(client: int, round_index: int) -> int:
    """Weight of a client's delta in the mean."""
    return 1 + (2 * client + round_index) % 3


def work(task: Task, round_index: int, members: tuple[int, ...]) -> dict[int, tuple[int, ...]]:
    """Blocks of a round with the clients that train each, both ascending."""
    return _work(task.seed, task.n_blocks, task.order, task.cohort, round_index, members)


@lru_cache(maxsize=65536)
def _work(
    seed: int, n_blocks: int, order: str, cohort: int | None, round_index: int, members: tuple[int, ...]
) -> dict[int, tuple[int, ...]]:
    clients = members
    if cohort is not None and cohort < len(members):
        clients = tuple(sorted(random.Random(f"{seed} cohort {round_index}").sample(members, cohort)))
    if order == "cyclic":
        blocks = sorted({(round_index + i) % n_blocks for i in clients})
        return {b: tuple(i for i in clients if (round_index + i) % n_blocks == b) for b in blocks}
    if order == "random":
        return {random.Random(f"{seed} block {round_index}").randrange(n_blocks): clients}
    return {round_index % n_blocks: clients}
