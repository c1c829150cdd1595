"""The configurations in which secure sums over real ranks must equal the oracle's sums of whole numbers."""

from __future__ import annotations

import itertools
from typing import Any

from lightning_parablock.settings import (
    BF16,
    NoCompression,
    SecureAggregation,
    ServerAdam,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
)
from tests.distributed.matrix import LOCAL_STEPS, ORDERS, TOPOLOGIES, VALUES, WEIGHTINGS, Case, settings_for
from tests.support.engine import leaving_out

DELAYS_STEPS = (0, LOCAL_STEPS // 2, LOCAL_STEPS, 2 * LOCAL_STEPS)
WIDTHS = (1, 2)
SERVERS: tuple[ServerOptimizer, ...] = (ServerSGD(), ServerNesterov(), ServerSGD(lr=0.5), ServerAdam())
COMMITS = (NoCompression(), NoCompression(), BF16())
N_CLIENTS = 12
COHORTS: tuple[dict[str, Any], ...] = (
    {"cohort": 9},
    {"cohort": 10, "cohort_sampling": "rotation"},
    {"availability": (tuple(range(12)), (0, 1, 2, 3, 4), (5, 6, 7, 8, 9, 10, 11))},
)


def secure_cases(n_ranks: int) -> list[Case]:
    """Both widths and topologies at every delay; the other options alternate."""
    kept = [order for order in ORDERS if order in ("random", "shuffle")]
    cases: list[Case] = []
    for index, (delay, width, topology) in enumerate(itertools.product(DELAYS_STEPS, WIDTHS, TOPOLOGIES)):
        turn = index + n_ranks
        settings = settings_for(
            aggregation=SecureAggregation(width),
            delay_steps=delay,
            topology=topology,
            block_order=kept[turn % 2],
            in_flight_value=VALUES[turn // 2 % 2],
            server_optimizer=SERVERS[turn % 4],
            compression=COMMITS[turn % 3],
            weighting=WEIGHTINGS[turn % 2 if width == 2 else 0],
            **(COHORTS[turn % 3] if index % 2 else {}),
        )
        settings = leaving_out(settings) if turn % 5 == 0 else settings
        each, more = (1, 0) if index % 4 == 2 else (N_CLIENTS // n_ranks, N_CLIENTS % n_ranks)
        cases.append(Case(n_ranks, turn % 2 == 0, settings, clients_per_rank=each, more_clients=more, total_steps=18))
    return cases
