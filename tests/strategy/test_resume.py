"""Stopped anywhere and resumed, on real processes: the scenarios of scenarios/resume.py, one launch for all of them."""

from __future__ import annotations

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.resume"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)
