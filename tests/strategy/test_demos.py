"""The demo modules that Lightning brings along, unedited: the scenarios of scenarios/demos.py, one launch for all."""

from __future__ import annotations

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.demos"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)
