"""Secure sums over two to five processes equal the oracle's sums of whole numbers, bit for bit.

Two sites are fewer than a run may have: the worker lowers the limit.
"""

from __future__ import annotations

import itertools

import pytest

from tests.distributed.matrix import TOPOLOGIES
from tests.distributed.matrix_secure import DELAYS_STEPS, WIDTHS, secure_cases
from tests.support.launch import run_ranks

WORKER = ("-m", "tests.distributed.worker_matrix", "--secure")
WORLD_SIZES = [2, 3, 4, 5]


@pytest.mark.parametrize("n_ranks", WORLD_SIZES)
def test_every_secure_case_equals_the_oracle_on_every_rank(n_ranks: int) -> None:
    """With messages that leave late, in an order of their own."""
    expected = f"CASES EQUAL {len(secure_cases(n_ranks))} streaming"
    for output in run_ranks(n_ranks, [*WORKER, "--late"]):
        assert expected in output.splitlines()


def test_secure_messages_in_one_order_give_the_same_bits() -> None:
    for output in run_ranks(3, [*WORKER, "--only", "4", "--lockstep"]):
        assert "CASES EQUAL 4 lockstep" in output.splitlines()


def test_a_mask_too_much_fails_the_run() -> None:
    """The comparison above can fail: one site masks for a session of other secrets."""
    for output in run_ranks(3, [*WORKER, "--only", "1", "--foreign"], expect_code=1):
        assert "CASES EQUAL" not in output


def test_every_delay_width_and_topology_meet_with_twelve_clients() -> None:
    for n_ranks in WORLD_SIZES:
        cases = secure_cases(n_ranks)
        met = {(c.settings.delay_steps, c.settings.aggregation, c.settings.topology) for c in cases}
        assert len(met) == len(DELAYS_STEPS) * len(WIDTHS) * len(TOPOLOGIES)
        assert {case.n_clients for case in cases} == {12, n_ranks}
    everything = list(itertools.chain.from_iterable(map(secure_cases, WORLD_SIZES)))
    assert {case.settings.weighting for case in everything} == {"uniform", "samples"}
