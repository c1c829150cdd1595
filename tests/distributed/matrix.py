"""The configurations in which the real run must equal the oracle, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from lightning_parablock.schedule import block_of_round
from lightning_parablock.settings import BlockOrder, InFlightValue, ServerNesterov, ServerSGD, Settings, Topology
from tests.oracle import OracleConfig
from tests.support.engine import oracle_config
from tests.tasks import Task, transformer_task

LOCAL_STEPS = 4
TOTAL_STEPS = 30  # seven rounds and a short last one
DELAYS_STEPS = (0, 3, LOCAL_STEPS, LOCAL_STEPS + 2, 2 * LOCAL_STEPS, 3 * LOCAL_STEPS)
ORDERS = get_args(BlockOrder)
SERVERS = (ServerSGD(), ServerNesterov())
VALUES = get_args(InFlightValue)
TOPOLOGIES = get_args(Topology)
SEED = 44  # of its orders, "random" repeats a block after 1, 2 and 3 rounds: test_matrix.py checks it


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
        run = (self.n_clients, self.tied, self.total_steps)
        parts = (*run, s.delay_steps, s.block_order, s.in_flight_value, s.server_optimizer)
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
    """Every delay x order x server optimizer x in-flight value; on two ranks times topology; some with more clients.

    The model alternates, and on other than two ranks the topology does, each by a sum of digits that mixes it with all
    the other options: test_matrix.py checks that every pair of values meets.
    """
    return [*_product(n_ranks), *_several_clients_on_a_rank(n_ranks)]


def _product(n_ranks: int) -> Iterator[Case]:
    digits = itertools.product(range(len(DELAYS_STEPS)), range(len(ORDERS)), range(len(SERVERS)), range(len(VALUES)))
    for delay, order, server, value in digits:
        either = (delay + order // 2 + server + value) % 2
        for topology in TOPOLOGIES if n_ranks == 2 else TOPOLOGIES[either : either + 1]:
            settings = settings_for(
                delay_steps=DELAYS_STEPS[delay],
                block_order=ORDERS[order],
                server_optimizer=SERVERS[server],
                in_flight_value=VALUES[value],
                topology=topology,
            )
            yield Case(n_ranks, tied=(delay + order + value) % 2 == 1, settings=settings)


def _several_clients_on_a_rank(n_ranks: int) -> Iterator[Case]:
    """A rank takes its clients in turn, and their deltas are summed with those of other ranks, by client."""
    if n_ranks > 2:
        return
    for index, (delay_steps, value, topology) in enumerate(itertools.product(DELAYS_STEPS, VALUES, TOPOLOGIES)):
        if n_ranks == 1 and topology != TOPOLOGIES[0]:
            continue
        settings = settings_for(
            delay_steps=delay_steps,
            block_order="random",
            server_optimizer=SERVERS[index // 4 % 2],
            in_flight_value=value,
            topology=topology,
        )
        yield Case(n_ranks, tied=index % 3 == 0, settings=settings, clients_per_rank=2, total_steps=18)


def settings_for(**changes: Any) -> Settings:
    """What all cases share, and what one changes."""
    shared: dict[str, Any] = {"exchange_timeout_s": 60, "chunk_bytes": 4096, "seed": SEED}
    return Settings(local_steps=LOCAL_STEPS, **{**shared, **changes})
