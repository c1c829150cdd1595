"""Every kind of architecture under the strategy: the scenarios of scenarios/architectures.py, one launch for all."""

from __future__ import annotations

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.architectures"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)
