"""The arithmetic of the benchmarks of speed, on runs whose figures can be told by hand."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.codecs.visits import residual_over_delta
from benchmarks.harness.bootstrap import interval, median_ratio, ratio_with_interval
from benchmarks.harness.run_figures import (
    compute_s,
    exchange_s,
    exposed_s,
    figures,
    hidden_share,
    ideal_blocking_s,
    ideal_parallel_s,
    round_s,
    run_of,
    seconds_spent,
    wall_s,
)
from benchmarks.harness.turns import round_sums
from benchmarks.overlap.calibration import Calibration
from benchmarks.steal.figures import added, by_round, costs, is_beside, paired_rounds, slowdown


def answer(rounds: list[dict[str, float]]) -> dict[str, Any]:
    """A client's answer; each round gives start, end, submitted, arrived, exposed and waited for a peer."""
    return {
        "rounds": {
            "start_s": [r["start"] for r in rounds],
            "end_s": [r["end"] for r in rounds],
            "compute_s": [r["end"] - r["start"] for r in rounds],
            "exchange_start_s": [r["end"] for r in rounds],
            "exchange_ready_s": [r["end"] for r in rounds],
            "exchange_end_s": [r["arrived"] for r in rounds],
            "exchange_s": [r["arrived"] - r["end"] for r in rounds],
            "exposed_s": [r["exposed"] for r in rounds],
            "wait_peer_s": [r.get("peer", 0.0) for r in rounds],
            "upload_bytes": [8 for _ in rounds],
            "download_bytes": [8 for _ in rounds],
        }
    }


def test_the_ideals_are_the_methods() -> None:
    compute, exchange = [2.0, 3.0, 1.0], [1.0, 4.0, 2.0]
    assert ideal_blocking_s(compute, exchange) == 13.0
    # The first exchange hides behind the second computation; the last one has nothing beside it.
    assert ideal_parallel_s(compute, exchange) == 2.0 + 3.0 + 4.0 + 2.0


def test_rounds_of_equal_length_are_nearly_twice_as_fast() -> None:
    n = 60
    ratio = ideal_blocking_s([1.0] * n, [1.0] * n) / ideal_parallel_s([1.0] * n, [1.0] * n)
    assert ratio == pytest.approx(2 * n / (n + 1))


# Two rounds of 2 s on both clients; the second client is 1 s late in round 0. Exchanges take 1 s once both are there.
BLOCKING = run_of(
    [
        answer([
            {"start": 100.0, "end": 102.0, "arrived": 104.0, "exposed": 1.0, "peer": 1.0},
            {"start": 104.0, "end": 106.0, "arrived": 107.0, "exposed": 1.0},
        ]),
        answer([
            {"start": 100.0, "end": 103.0, "arrived": 104.0, "exposed": 1.0},
            {"start": 104.0, "end": 106.0, "arrived": 107.0, "exposed": 1.0},
        ]),
    ],
    delay_steps=0,
)  # fmt: skip


def test_a_run_at_delay_0_takes_its_computation_and_its_exchange() -> None:
    assert compute_s(BLOCKING) == [3.0, 2.0]
    assert exchange_s(BLOCKING) == [1.0, 1.0]  # from the later submission, not from the earlier one
    assert round_s(BLOCKING) == [4.0]
    assert wall_s(BLOCKING) == 7.0 == ideal_blocking_s([3.0, 2.0], [1.0, 1.0])
    assert BLOCKING["clients"][0]["start_s"] == [0.0, 4.0]
    assert hidden_share(BLOCKING, with_drain=True) == 0.0


def test_waiting_for_a_slower_client_is_no_exposed_exchange() -> None:
    assert exposed_s(BLOCKING) == [1.0, 1.0]
    spent = seconds_spent(BLOCKING)
    assert spent == pytest.approx(
        {"compute_s": 4.5 / 2, "exposed_s": 0.5, "drain_s": 0.5, "wait_peer_s": 0.25, "between_s": 0.0}
    )
    assert 2 * sum(spent.values()) == pytest.approx(wall_s(BLOCKING))


def test_a_first_chunk_waited_for_belongs_to_the_exchange() -> None:
    """A record counts its exchange from the first chunk's arrival on; the figures, from the last submission."""
    rounds = [{"start": 0.0, "end": 1.0, "arrived": 3.0, "exposed": 1.5, "peer": 0.5}]
    run = run_of([answer(rounds), answer(rounds)], delay_steps=0)
    assert exposed_s(run) == [2.0] == exchange_s(run)
    assert seconds_spent(run)["wait_peer_s"] == 0.0


PARALLEL = run_of(
    [
        answer([
            {"start": 0.0, "end": 2.0, "arrived": 3.0, "exposed": 0.0},
            {"start": 2.0, "end": 4.5, "arrived": 6.5, "exposed": 0.0},
            {"start": 4.5, "end": 6.0, "arrived": 8.5, "exposed": 0.5},
        ]),
    ],
    delay_steps=2,
)  # fmt: skip
PARALLEL["clients"][0]["exposed_s"] = [0.0, 0.5, 2.0]


def test_what_is_hidden_is_counted_with_and_without_the_drain() -> None:
    assert exchange_s(PARALLEL) == [1.0, 2.0, 2.5]
    assert hidden_share(PARALLEL, with_drain=False) == pytest.approx(1 - 0.5 / 3)
    assert hidden_share(PARALLEL, with_drain=True) == pytest.approx(1 - 2.5 / 5.5)


def test_figures_of_a_pair() -> None:
    found = figures(BLOCKING, PARALLEL)
    assert found["speedup"] == pytest.approx(7.0 / 8.5)
    assert found["ideal_parablock_round_s"] == pytest.approx((3.0 + 2.0 + 1.0) / 2)
    assert found["blocking_over_ideal"] == 1.0
    assert found["own_ideal_parablock_round_s"] == pytest.approx((2.0 + 2.5 + 2.0 + 2.5) / 2)


def test_a_step_is_beside_an_exchange_wholly_or_not_at_all() -> None:
    exchanges = [(1.0, 3.0), (5.0, 6.0)]
    assert is_beside((1.0, 2.0), exchanges) is True
    assert is_beside((3.0, 5.0), exchanges) is False
    assert is_beside((2.5, 3.5), exchanges) is None
    assert is_beside((0.5, 6.5), exchanges) is None


def steps(spans: list[tuple[float, float]], exchanges: list[tuple[float, float]]) -> dict[str, Any]:
    starts, ends = zip(*exchanges, strict=True)
    return {"steps": spans, "rounds": {"exchange_start_s": starts, "exchange_end_s": ends}}


def test_steps_with_and_without_an_exchange_are_paired_within_a_round() -> None:
    spans = [(0, 1), (1, 2), (2, 3), (3, 4), (4, 6), (6, 8), (8, 9.1), (9.1, 10)]
    parallel = steps([(float(a), float(b)) for a, b in spans], [(4.0, 8.5), (10.0, 12.0)])
    blocking = steps([(i, i + 1.0) for i in range(8)], [(4.0, 4.0), (8.0, 8.0)])
    assert [kind for kind, _ in by_round(parallel, 4)[1]] == [True, True, None, False]
    rows = paired_rounds(parallel, blocking, 4)
    # Round 0 had none in flight; of round 1 the first step is left out, and the third had one for a part.
    assert rows == [pytest.approx([2.0, 0.9, 1.0, 1.0])]
    assert slowdown(rows * 3)["ratio"]["median"] == pytest.approx(2.0 / 0.9)


def test_no_round_of_both_kinds_is_an_error() -> None:
    with pytest.raises(ValueError, match="no round has steps of both kinds"):
        slowdown([])


def test_costs_per_step_and_per_round_are_told_apart() -> None:
    """Each step costs 2 ms more, the first of a round 3 ms beyond that, and the last one 5 ms."""
    n_rounds, local_steps, dropped = 10, 4, 2
    ours = [0.010 + 0.002 + (0.003, 0, 0, 0.005)[step % local_steps] for step in range(n_rounds * local_steps)]
    seconds = {"parablock": ours[dropped:], "plain": [0.010] * (n_rounds * local_steps - dropped)}
    rows = added(seconds, local_steps, dropped=dropped)
    assert rows == [pytest.approx([0.002, 0.016])] * (n_rounds - 1)
    found = costs(rows, local_steps)
    assert found["step"] == {"median": pytest.approx(2.0), "interval": pytest.approx([2.0, 2.0])}
    assert found["round"] == {"median": pytest.approx(8.0), "interval": pytest.approx([8.0, 8.0])}


def test_round_sums_leave_a_broken_round_out() -> None:
    assert round_sums([1, 2, 3, 4, 5], 2) == [3, 7]


def test_the_interval_holds_the_ratio_and_is_the_same_each_time() -> None:
    generator = np.random.default_rng(1)
    first = 1.0 + 0.01 * generator.standard_normal(200)
    pairs = np.stack([1.05 * first, first * (1 + 0.01 * generator.standard_normal(200))], axis=1).tolist()
    found = ratio_with_interval(pairs)
    low, high = found["interval"]  # type: ignore[misc]
    assert 1.045 < low < found["ratio"] < high < 1.055
    assert found == ratio_with_interval(pairs)


def test_intervals_cover_the_truth_about_as_often_as_they_say() -> None:
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(200):
        low, high = interval(generator.standard_normal((40, 1)), lambda r: r[..., 0].mean(axis=-1), draws=500)
        hits += low < 0 < high
    assert 180 <= hits <= 198


def test_one_measurement_has_no_spread() -> None:
    assert interval([[2.0, 1.0]], median_ratio, draws=10) == [2.0, 2.0]


# --- calibration ------------------------------------------------------------------------------------------------------


def blocking_run(compute: float, exchange: float, rate_mbit: float) -> dict[str, Any]:
    """A run at delay 0 of three rounds, the first of which is far slower than the others."""
    rounds, now = [], 0.0
    for slower in (9.0, 0.0, 0.0):
        end = now + compute + slower
        rounds.append({"start": now, "end": end, "arrived": end + exchange + slower, "exposed": exchange})
        now = end + exchange + slower
    return run_of([answer(rounds)], delay_steps=0, rate_mbit=rate_mbit)


def test_two_runs_give_the_rate_for_any_ratio_and_a_third_one_corrects_it() -> None:
    # M = 0.5 s + 60 megabits / rate
    link = Calibration.of(blocking_run(2.0, 3.5, 20.0), blocking_run(2.0, 1.5, 60.0))
    assert (link.compute_s, link.fixed_s, link.megabits) == pytest.approx((2.0, 0.5, 60.0))
    assert link.rate_mbit(1.0) == pytest.approx(40.0)
    assert link.rate_mbit(0.1) == 2000.0  # the fixed part alone is longer
    link.learn(blocking_run(4.0, 2.5, 40.0))  # 80 megabits, it turns out, and a slower computation
    assert link.rate_mbit(1.0) == pytest.approx(80.0 / 3.5, abs=1e-3)


def test_residuals_are_compared_with_the_delta_that_they_are_added_to() -> None:
    rows = [
        {"visit": 1, "residual": 0.0, "delta": 2.0},
        {"visit": 2, "residual": 3.0, "delta": 2.0},
        {"visit": 1, "residual": 0.0, "delta": 1.0},
        {"visit": 2, "residual": 1.0, "delta": 2.0},
    ]
    assert residual_over_delta(rows) == [0.0, 1.0]
