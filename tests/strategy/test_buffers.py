"""Buffers on two clients: each one's own, or the mean where W is shown; the scenarios of scenarios/buffers.py."""

from __future__ import annotations

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.buffers"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)
