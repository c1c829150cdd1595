"""``blocks="auto"`` on real processes: the scenarios of scenarios/auto_blocks.py, one launch for all of them."""

from __future__ import annotations

import re

from tests.support.ranks import Ranks, each_of, ranks_of

SUITE = "tests.strategy.scenarios.auto_blocks"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


def test_the_reason_is_logged_once(ranks: Ranks) -> None:
    first, second = ranks.run("said")
    (line,) = re.findall(r"parablock: blocks: .*", first)
    assert re.fullmatch(
        r"parablock: blocks: 2, the fewest whose memory fits: ([\d.]+ kB) without activations, of the \1 of .* 0.*; "
        r"the largest \(layers\.0\.\.layers\.1\) has [\d,]+ parameters",
        line,
    ), line
    assert "blocks: " not in second
