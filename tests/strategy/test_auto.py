"""``local_steps="auto"`` on real processes: the scenarios of scenarios/auto.py, one launch for all of them."""

from __future__ import annotations

import re

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.auto"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


def test_the_reasons_are_logged_once(ranks: Ranks) -> None:
    first, second = ranks.run("slowest client")
    assert re.search(
        r"parablock: local_steps: \d+, agreed by the clients: the slowest client takes 0.5 s per step", first
    )
    assert "local_steps: " not in second
