"""Runs that a signal stops or requeues, on real processes: the scenarios of scenarios/stopping.py."""

from __future__ import annotations

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.stopping"
ranks = ranks_of(SUITE)


@each_of(SUITE, but=("too late",))
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


def test_a_client_that_does_not_come_is_not_waited_for(ranks: Ranks) -> None:
    ranks.run("too late")
