"""The real run on one to four processes equals the oracle, bit for bit, in every configuration."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lightning_parablock.blocks.partition import Block
from tests.distributed.matrix import (
    DELAYS_STEPS,
    LOCAL_STEPS,
    LOSSY,
    MORE_SERVERS,
    ORDERS,
    SERVERS,
    TOPOLOGIES,
    VALUES,
    WARM_UPS,
    WEIGHTINGS,
    Case,
    cases,
)
from tests.support.engine import blocks_of
from tests.support.launch import run_ranks
from tests.tasks import token_task

WORKER = ("-m", "tests.distributed.worker_matrix")
WORLD_SIZES = [1, 2, 3, 4]


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_case_equals_the_oracle_on_every_rank(n_ranks: int) -> None:
    expected = f"CASES EQUAL {len(cases(n_ranks))} streaming"
    for output in run_ranks(n_ranks, WORKER):
        assert expected in output.splitlines()


@pytest.mark.parametrize("n_ranks", [2, 3])
def test_messages_in_one_order_give_the_same_bits(n_ranks: int) -> None:
    """What NCCL needs, shown on gloo: one thread, matching batches."""
    for output in run_ranks(n_ranks, [*WORKER, "--only", "24", "--lockstep"]):
        (equal,) = [line for line in output.splitlines() if line.startswith("CASES EQUAL")]
        assert int(equal.split()[2]) >= 16
        assert equal.endswith("lockstep")


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_one_wrong_bit_in_what_is_expected_fails_the_run(n_ranks: int) -> None:
    """The comparison above can fail."""
    for output in run_ranks(n_ranks, [*WORKER, "--only", "2", "--spoil"], expect_code=1):
        assert "bits differ in" in output
        assert "1 of" in output
        assert "CASES EQUAL" not in output


def blocks_of_task(*, tied: bool) -> list[Block]:
    task = token_task(tied=tied)
    return blocks_of(task.make_model(), task.block_names)


def options_of(case: Case) -> dict[str, Any]:
    s = case.settings
    return {
        "delay": s.delay_steps,
        "order": s.block_order,
        "server": s.server_optimizer,
        "value": s.in_flight_value,
        "topology": s.topology,
        "tied": case.tied,
    }


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_pair_of_option_values_meets(n_ranks: int) -> None:
    everything = {
        "delay": DELAYS_STEPS,
        "order": ORDERS,
        "server": SERVERS,
        "value": VALUES,
        "topology": TOPOLOGIES,
        "tied": (False, True),
    }
    for one, other in itertools.combinations(everything, 2):
        met = {(options_of(case)[one], options_of(case)[other]) for case in cases(n_ranks)}
        assert met >= set(itertools.product(everything[one], everything[other])), (one, other)


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_codec_meets_every_delay(n_ranks: int) -> None:
    met = {(case.settings.compression, case.settings.delay_steps) for case in cases(n_ranks)}
    assert met >= set(itertools.product(LOSSY, DELAYS_STEPS))


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_server_optimizer_and_weighting_meets_every_delay(n_ranks: int) -> None:
    met = {
        (case.settings.server_optimizer, s.weighting, s.delay_steps) for case in cases(n_ranks) for s in [case.settings]
    }
    assert met >= set(itertools.product(MORE_SERVERS, WEIGHTINGS, DELAYS_STEPS))
    schedules = {
        case.settings.topology for case in cases(n_ranks) if case.settings.server_optimizer.decay != "constant"
    }
    assert schedules == set(TOPOLOGIES)


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_delay_follows_every_warm_up(n_ranks: int) -> None:
    with_one = [case.settings for case in cases(n_ranks) if case.settings.delay_warmup_rounds]
    met = {(s.delay_steps, s.delay_warmup_rounds) for s in with_one}
    assert met == set(itertools.product(DELAYS_STEPS[1:], WARM_UPS))
    assert {(s.topology, s.cohort) for s in with_one} == set(itertools.product(TOPOLOGIES, (None, 2)))


def test_blocks_are_longer_than_a_chunk_and_end_within_a_group() -> None:
    sizes = [b.numel for tied in (False, True) for b in blocks_of_task(tied=tied)]
    assert max(sizes) > 2 * 1024
    assert any(size % 64 for size in sizes)


def test_the_delays_are_the_ones_of_the_method() -> None:
    K = LOCAL_STEPS
    assert DELAYS_STEPS == (0, 3, K, K + 2, 2 * K, 3 * K)
    assert K > 3


@pytest.mark.parametrize("n_ranks", [1, 2])
def test_some_ranks_host_several_clients_that_are_not_neighbours(n_ranks: int) -> None:
    several = [case for case in cases(n_ranks) if case.clients_per_rank > 1]
    assert {case.settings.delay_steps for case in several} == set(DELAYS_STEPS)
    assert several[0].clients_of_ranks() == ([[0, 1]] if n_ranks == 1 else [[0, 2], [1, 3]])


def test_random_orders_repeat_a_block_within_the_longest_delay() -> None:
    """At once, after one round and after two: a block then has up to three deltas of a client in flight."""
    schedules = {tuple(case.schedule()) for case in cases(4) if case.settings.block_order == "random"}
    schedule = max(schedules, key=len)
    assert all(schedule[: len(shorter)] == shorter for shorter in schedules)
    for gap in (1, 2, 3):
        assert gap * LOCAL_STEPS <= DELAYS_STEPS[-1]
        assert any(one == other for one, other in zip(schedule, schedule[gap:], strict=False)), gap
    assert set(schedule) == set(range(len(cases(4)[0].task().block_names)))
