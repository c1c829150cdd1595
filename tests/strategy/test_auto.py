"""``local_steps="auto"`` and ``compression="auto"`` on real processes: scenarios/auto.py, one launch for all of it."""

from __future__ import annotations

import re

import pytest

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


@pytest.mark.parametrize(
    ("scenario", "found", "why"),
    [
        ("codec: bf16", "compression: bf16", "the least compression with which 4 local steps hide every exchange"),
        ("codec: not even int4", "compression: int4", "not even int4 hides every exchange behind 4 local steps; that"),
        (
            "codec and more local steps",
            "local_steps: 10, compression: int4",
            "not even int4 hides every exchange behind 4 local steps; that takes 10",
        ),
    ],
)
def test_the_codec_and_its_reason_are_logged_once(ranks: Ranks, scenario: str, found: str, why: str) -> None:
    first, second = ranks.run(scenario)
    (line,) = re.findall(r"parablock: .*compression: .*", first)
    assert re.fullmatch(
        rf"parablock: {found}, agreed by the clients: the slowest client takes 0.5 s per step, the slowest link "
        rf"carries [\d.]+ kbit/s, the longest exchange \(.*\) takes [\d.]+ s, [\d.]+ s without compression; {why}.*",
        line,
    ), line
    assert "compression: " not in second
