"""Random histories of a simulated run have, bit for bit, the results of a plain loop that replays their logs."""

from __future__ import annotations

import os
from collections import Counter

import pytest

from tests.regroup import history
from tests.regroup.site import Site
from tests.regroup.spoilt import SPOILT

N_HISTORIES = int(os.environ.get("ELASTIC_HISTORIES", "600"))
"""``make soak`` runs 2,000."""
N_PARTS = 4


@pytest.mark.parametrize("part", range(N_PARTS))
def test_members_have_the_bits_of_the_loop(part: int) -> None:
    stats: Counter[str] = Counter()
    for seed in range(part, N_HISTORIES, N_PARTS):
        try:
            world = history.play(seed)
            history.check(world)
        except Exception as error:
            error.add_note(f"history {seed}")
            raise
        stats += world.stats
        stats[f"ended: {world.outcome}"] += 1
    for what in (
        "kills during a regroup",
        "kills in the drain",
        "kills of the one ahead",
        "leaves",
        "zombies",
        "adopted generations",
        "decisions that forward kept commits",
        "decisions that redo exchanges",
        "decisions that admit joiners",
        "decisions with leavers",
        "decisions in which n would fall",
        "pieces restored from a backup",
        "pieces that start anew",
        "ended: done",
    ):
        assert stats[what] >= 3, (what, stats)
    assert stats["ended: done"] > N_HISTORIES / N_PARTS * 0.7, stats


def fails(seed: int, site_class: type[Site], ignores_restored: bool = False) -> bool:
    """Whether a history ends with other results, with an error or not at all."""
    try:
        history.check(history.play(seed, site_class), ignores_restored=ignores_restored)
    except Exception:
        return True
    return False


@pytest.mark.parametrize("rule", SPOILT)
def test_histories_fail_without_a_rule(rule: str) -> None:
    assert any(fails(seed, SPOILT[rule]) for seed in range(600))


def test_histories_fail_if_the_log_does_not_say_what_was_restored() -> None:
    assert any(fails(seed, Site, ignores_restored=True) for seed in range(600))
