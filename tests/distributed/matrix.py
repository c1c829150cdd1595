"""The configurations in which the real run must equal the oracle, bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, get_args

from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.settings import (
    BF16,
    BlockOrder,
    InFlightValue,
    Int4,
    Int8,
    LowRank,
    NoCompression,
    ServerAdam,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
    ServerYogi,
    Settings,
    Sparse,
    TopK,
    Topology,
    Weighting,
)
from tests.oracle import OracleConfig
from tests.support.engine import oracle_config
from tests.tasks import Task, poisoned_task, token_task, wide_task

LOCAL_STEPS = 4
TOTAL_STEPS = 26  # six rounds and a short last one
DELAYS_STEPS = (0, 3, LOCAL_STEPS, LOCAL_STEPS + 2, 2 * LOCAL_STEPS, 3 * LOCAL_STEPS)
ORDERS = get_args(BlockOrder)
SERVERS = (ServerSGD(), ServerNesterov())
MORE_SERVERS: tuple[ServerOptimizer, ...] = (
    ServerAdam(),
    ServerYogi(lr=0.03, betas=(0.8, 0.9), tau=1e-4),
    ServerSGD(warmup_rounds=2, decay="linear", decay_rounds=6),
)
WARM_UPS = (1, 2, 4)
WEIGHTINGS = get_args(Weighting)
VALUES = get_args(InFlightValue)
LOSSY = (BF16(), Int8(), Int4(), TopK(), Sparse(16, decay=0.75))
LOW_RANKS = (LowRank(2), LowRank(3, decay=0.75))
TOPOLOGIES = get_args(Topology)
TRACE = ((0, 2, 3), (1,), (0, 1, 2, 3), (3,))
COHORTS: tuple[dict[str, Any], ...] = (
    {"cohort": 1},
    {"cohort": 2},
    {"cohort": 3},
    {"cohort": 2, "cohort_sampling": "rotation"},
    {"cohort": 2, "availability": TRACE},
    {"availability": TRACE},
)
SEED = 87  # of its orders, "random" repeats a block after 1, 2 and 3 rounds: test_matrix.py checks it


@dataclass(frozen=True)
class Case:
    """One run."""

    n_ranks: int
    tied: bool
    settings: Settings
    clients_per_rank: int = 1
    more_clients: int = 0
    total_steps: int = TOTAL_STEPS
    wide: bool = False

    @property
    def oracle_key(self) -> str:
        """Topology and placement change no bit, so cases that differ only there share an oracle run."""
        s = self.settings
        run = (self.n_clients, self.tied, self.total_steps, self.wide)
        parts = (*run, s.delay_steps, s.block_order, s.in_flight_value, s.server_optimizer, s.compression, s.weighting)
        parts += (s.cohort, s.cohort_sampling, s.availability, s.nonfinite_delta, s.aggregation)
        parts += (s.delay_warmup_rounds,)
        return "/".join(map(str, parts))

    @property
    def n_clients(self) -> int:
        """Clients in all."""
        return self.n_ranks * self.clients_per_rank + self.more_clients

    @property
    def hosted(self) -> tuple[tuple[int, ...], ...]:
        """The clients of each rank."""
        return tuple(map(tuple, self.clients_of_ranks()))

    def task(self) -> Task:
        """The model and data; where clients are skipped, one in two rounds, the last among them, and all in another."""
        task = wide_task() if self.wide else token_task(tied=self.tied)
        if self.settings.nonfinite_delta == "stop":
            return task
        last = (self.n_clients - 1, self.total_steps - 1)
        return poisoned_task(task, (0, 5), last, *((client, 13) for client in range(self.n_clients)))

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
    """Two ranks: the full product of all options but the model, which alternates. Else: a part of it.

    On one, three and four ranks in-flight value and topology alternate, too, each by a sum of digits that mixes it with
    the other options; three and four ranks together have every delay x order x server optimizer x in-flight value.
    """
    kinds = (_product, _several_clients_on_a_rank, _compressed, _servers, _cohorts, _skipped, _warm_up, _low_rank)
    return [case for kind in kinds for case in kind(n_ranks)]


def _product(n_ranks: int) -> Iterator[Case]:
    """Every delay with every order; on two ranks with every server and value, too. What is left alternates."""
    full = n_ranks == 2
    for delay, order in itertools.product(range(len(DELAYS_STEPS)), range(len(ORDERS))):
        one_server, one_value = (delay + order + n_ranks) % 2, (delay + order // 2) % 2
        for server, value in itertools.product((0, 1), (0, 1)) if full else [(one_server, one_value)]:
            settings = settings_for(
                delay_steps=DELAYS_STEPS[delay],
                block_order=ORDERS[order],
                server_optimizer=SERVERS[server],
                in_flight_value=VALUES[value],
                topology=TOPOLOGIES[(delay + order // 4 + (server if full else 0)) % 2],
            )
            yield Case(n_ranks, tied=(delay // 2 + order + (value if full else 0)) % 2 == 1, settings=settings)


def _several_clients_on_a_rank(n_ranks: int) -> Iterator[Case]:
    """A rank takes its clients in turn, and their deltas are summed with those of other ranks, by client."""
    if n_ranks > 2:
        return
    for index, (delay_steps, topology) in enumerate(itertools.product(DELAYS_STEPS, TOPOLOGIES)):
        if n_ranks == 1 and topology != TOPOLOGIES[0]:
            continue
        turn = index // 2
        settings = settings_for(
            delay_steps=delay_steps,
            block_order="random",
            server_optimizer=SERVERS[turn % 2],
            in_flight_value=VALUES[turn // 2 % 2],
            topology=topology,
            compression=(NoCompression(), *LOSSY)[turn % (1 + len(LOSSY))],
        )
        yield Case(n_ranks, tied=turn % 3 == 0, settings=settings, clients_per_rank=2, total_steps=18)


def _compressed(n_ranks: int) -> Iterator[Case]:
    """Every codec with every delay, in an order in which blocks come up again while they are in flight.

    On two ranks in both topologies, else in one of them; server optimizer and in-flight value alternate.
    """
    for delay, codec, topology in itertools.product(range(len(DELAYS_STEPS)), range(len(LOSSY)), range(2)):
        if n_ranks != 2 and topology != (delay + codec) % 2:
            continue
        settings = settings_for(
            delay_steps=DELAYS_STEPS[delay],
            block_order="random",
            server_optimizer=SERVERS[(delay // 2 + codec) % 2],
            in_flight_value=VALUES[(delay + codec // 2) % 2],
            topology=TOPOLOGIES[topology],
            compression=LOSSY[codec],
        )
        yield Case(n_ranks, tied=(delay + codec) % 2 == 0, settings=settings, total_steps=18)


def _servers(n_ranks: int) -> Iterator[Case]:
    """The other server optimizers, a schedule of the server's learning rate, and weights by samples, at every delay.

    Topology, in-flight value and codec alternate.
    """
    for delay, server, weighting in itertools.product(
        range(len(DELAYS_STEPS)), range(len(MORE_SERVERS)), range(len(WEIGHTINGS))
    ):
        settings = settings_for(
            delay_steps=DELAYS_STEPS[delay],
            block_order="random",
            server_optimizer=MORE_SERVERS[server],
            weighting=WEIGHTINGS[weighting],
            in_flight_value=VALUES[(delay + weighting) % 2],
            topology=TOPOLOGIES[(delay // 2 + server + weighting) % 2],
            compression=Int8() if (delay + server) % 3 == 0 else NoCompression(),
        )
        yield Case(n_ranks, tied=(delay + server) % 2 == 0, settings=settings, total_steps=18)


def _cohorts(n_ranks: int) -> Iterator[Case]:
    """Part of the clients trains in each round, in every way to choose them, at every delay.

    Ranks host different numbers of clients, some have none in a round; orders, codecs, weights and topologies
    alternate.
    """
    for index, (delay_steps, ways) in enumerate(itertools.product(DELAYS_STEPS, COHORTS)):
        settings = settings_for(
            delay_steps=delay_steps,
            block_order=("cyclic", "random", "importance")[index % 3],
            in_flight_value=VALUES[index // 3 % 2],
            topology=TOPOLOGIES[index // 2 % 2],
            server_optimizer=SERVERS[index // 4 % 2],
            weighting=WEIGHTINGS[index // 5 % 2],
            compression=(NoCompression(), *LOSSY)[index % (1 + len(LOSSY))],
            **ways,
        )
        yield Case(
            n_ranks,
            tied=index % 2 == 0,
            settings=settings,
            clients_per_rank=1 + index % 2,
            more_clients=4 - n_ranks + index % 2,
            total_steps=18,
        )


def _skipped(n_ranks: int) -> Iterator[Case]:
    """Losses that are not a number, at every delay; topology, order, weights, server and codec alternate."""
    for index, delay_steps in enumerate(DELAYS_STEPS):
        settings = settings_for(
            delay_steps=delay_steps,
            nonfinite_delta="skip",
            block_order=("random", "importance")[index % 2],
            in_flight_value=VALUES[index // 2 % 2],
            topology=TOPOLOGIES[(index + n_ranks) % 2],
            server_optimizer=(ServerSGD(), ServerNesterov(), ServerAdam())[index % 3],
            weighting=WEIGHTINGS[index // 3 % 2],
            compression=(NoCompression(), Int8())[index // 2 % 2],
        )
        yield Case(n_ranks, tied=index % 2 == 0, settings=settings, clients_per_rank=1 + n_ranks % 2, total_steps=18)


def _warm_up(n_ranks: int) -> Iterator[Case]:
    """Rounds without delay, then every delay, with all clients and with cohorts; the rest alternates."""
    for index, (delay, warmup) in enumerate(itertools.product(range(1, len(DELAYS_STEPS)), WARM_UPS)):
        cohort = {"cohort": 2} if index % 2 else {}
        settings = settings_for(
            delay_steps=DELAYS_STEPS[delay],
            delay_warmup_rounds=warmup,
            block_order=("random", "cyclic", "importance")[index // 2 % 3],
            in_flight_value=VALUES[index // 4 % 2],
            topology=TOPOLOGIES[(index // 2 + n_ranks) % 2],
            server_optimizer=(*SERVERS, *MORE_SERVERS)[index % 5],
            weighting=WEIGHTINGS[index // 3 % 2],
            compression=(Int8(), NoCompression(), Int4())[index // 3 % 3],
            **cohort,
        )
        yield Case(n_ranks, tied=index % 2 == 0, settings=settings, clients_per_rank=1 + index // 2 % 2, total_steps=22)


def _low_rank(n_ranks: int) -> Iterator[Case]:
    """Factors of matrices at every delay, with all clients and with cohorts; the rest alternates.

    Those of the wide model fill several chunks and shards.
    """
    for topology, delay_steps in itertools.product(TOPOLOGIES, (LOCAL_STEPS, 2 * LOCAL_STEPS)):
        settings = settings_for(
            delay_steps=delay_steps, block_order="sequential", topology=topology, compression=LowRank(2)
        )
        yield Case(n_ranks, tied=False, settings=settings, wide=True)
    servers = (*SERVERS, *MORE_SERVERS)
    for index, (delay_steps, codec) in enumerate(itertools.product(DELAYS_STEPS, LOW_RANKS)):
        cohort = {"cohort": 2} if index % 4 == 1 else {}
        settings = settings_for(
            delay_steps=delay_steps,
            block_order=("random", "cyclic", "importance")[index % 3],
            in_flight_value=VALUES[index // 3 % 2],
            topology=TOPOLOGIES[(index // 2 + n_ranks) % 2],
            server_optimizer=servers[index % 5],
            weighting=WEIGHTINGS[index // 3 % 2],
            nonfinite_delta=("stop", "skip")[index // 4 % 2],
            compression=codec,
            **cohort,
        )
        yield Case(n_ranks, tied=index % 2 == 0, settings=settings, clients_per_rank=1 + index // 2 % 2, total_steps=22)


def settings_for(**changes: Any) -> Settings:
    """What all cases share, and what one changes."""
    shared: dict[str, Any] = {"exchange_timeout_s": 60, "chunk_bytes": 4096, "seed": SEED}
    return Settings(local_steps=LOCAL_STEPS, **{**shared, **changes})
