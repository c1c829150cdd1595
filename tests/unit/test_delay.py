"""When exchanges fall due, counted step by step."""

from __future__ import annotations

import itertools

import pytest

from lightning_parablock.settings import Settings

K, ROUNDS = 4, 12


@pytest.mark.parametrize("warmup_rounds", [0, 1, 2, 5, ROUNDS])
@pytest.mark.parametrize("delay_steps", [0, 1, 2, K, K + 2, 2 * K, 3 * K + 1])
def test_what_is_due_by_the_common_clock(delay_steps: int, warmup_rounds: int) -> None:
    delay = Settings(local_steps=K, delay_steps=delay_steps, delay_warmup_rounds=warmup_rounds).delay
    due_after = [(t + 1) * K + (0 if t < warmup_rounds else delay_steps) for t in range(ROUNDS)]
    assert due_after == sorted(due_after)
    for t in range(ROUNDS):
        merged = [one for one in range(ROUNDS) if due_after[one] <= t * K]
        assert max(delay.newest_due_at_start(t), -1) == max(merged, default=-1)
        assert delay.is_none_in(t) == (due_after[t] == (t + 1) * K)
        inside = [one for one in range(ROUNDS) if t * K < due_after[one] < (t + 1) * K]
        assert inside in ([], [delay.due_in_turns_of(t)])


def test_rounds_fall_due_in_their_order() -> None:
    for delay_steps, warmup_rounds in itertools.product([0, 3, K, 2 * K + 1], [0, 2, 7]):
        delay = Settings(local_steps=K, delay_steps=delay_steps, delay_warmup_rounds=warmup_rounds).delay
        newest = [delay.newest_due_at_start(t) for t in range(ROUNDS)]
        assert newest == sorted(newest)
