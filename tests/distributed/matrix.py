"""The configurations in which the real run must equal the oracle, bit for bit."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import get_args

from lightning_parablock.schedule import block_of_round
from lightning_parablock.settings import BlockOrder, ServerNesterov, ServerSGD, Settings
from tests.oracle import OracleConfig
from tests.support.engine import oracle_config
from tests.tasks import Task, transformer_task

LOCAL_STEPS = 4
TOTAL_STEPS = 30  # seven rounds and a short last one
DELAYS_STEPS = (0, 3, LOCAL_STEPS, LOCAL_STEPS + 2, 2 * LOCAL_STEPS, 3 * LOCAL_STEPS)
SEED = 5  # of its orders, "random" repeats a block at once and within the longest delay: test_matrix.py checks it


@dataclass(frozen=True)
class Case:
    """One run."""

    n_ranks: int
    tied: bool
    settings: Settings
    clients_per_rank: int = 1
    total_steps: int = TOTAL_STEPS

    @property
    def oracle_key(self) -> str:
        """Topology and placement change no bit, so cases that differ only there share an oracle run."""
        s = self.settings
        parts = (self.n_clients, self.tied, s.delay_steps, s.block_order, s.in_flight_value, s.server_optimizer)
        return "/".join(map(str, parts))

    @property
    def n_clients(self) -> int:
        """Clients in all."""
        return self.n_ranks * self.clients_per_rank

    def task(self) -> Task:
        """The model and data."""
        return transformer_task(tied=self.tied)

    def clients_of_ranks(self) -> list[list[int]]:
        """Clients dealt out in turn, so that a rank's clients are not neighbours in the order of the sum."""
        return [list(range(rank, self.n_clients, self.n_ranks)) for rank in range(self.n_ranks)]

    def schedule(self) -> list[int]:
        """The block of each round."""
        n_blocks, s = len(self.task().block_names), self.settings
        n_rounds = -(-self.total_steps // s.local_steps)
        return [block_of_round(s.block_order, n_blocks, t, s.seed) for t in range(n_rounds)]

    def oracle_config(self) -> OracleConfig:
        """The same run in the oracle's words."""
        return oracle_config(
            self.task(), self.settings, self.schedule(), n_clients=self.n_clients, total_steps=self.total_steps
        )


def cases(n_ranks: int) -> list[Case]:
    """Every delay x order x server optimizer x in-flight value; topology and model alternate, each with both."""
    options = itertools.product(
        DELAYS_STEPS, get_args(BlockOrder), (ServerSGD(), ServerNesterov()), ("local", "anchor")
    )
    found: list[Case] = []
    for index, (delay_steps, order, optimizer, value) in enumerate(options):
        for topology in ("sharded", "star"):
            settings = Settings(
                local_steps=LOCAL_STEPS,
                delay_steps=delay_steps,
                block_order=order,
                in_flight_value=value,
                server_optimizer=optimizer,
                topology=topology,
                exchange_timeout_s=60,
                chunk_bytes=4096,
                seed=SEED,
            )
            # A fifth column of the product would double the time; a sum of digits mixes it with all the others.
            found.append(Case(n_ranks, tied=(index + index // 4 + index // 16) % 2 == 1, settings=settings))
    return found
