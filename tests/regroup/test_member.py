"""A site's own part in regroups, and the choice of coordinator, number and client ids."""

from __future__ import annotations

import pytest

from lightning_parablock.errors import CallOrderError, MembershipError, SealedError
from lightning_parablock.regroup.candidates import Candidate, coordinator_of, free_client, next_generation
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.member import Membership
from lightning_parablock.regroup.report import Decision, Report, Standing

RULES = Rules()


def founding(generation: int, *sites: str) -> Decision:
    return decide(generation, [Report(site, None, None, None) for site in sites], RULES)


def regroup(generation: int, before: Decision, *sites: str, joiners: tuple[str, ...] = ()) -> Decision:
    standing = Standing(before.log, before.record.kept)
    reports = [Report(site, None, standing, None) for site in sites]
    return decide(generation, reports + [Report(site, None, None, None) for site in joiners], RULES)


def opened(site: str, decision: Decision) -> Membership:
    mine = Membership(site)
    mine.seal(decision.record.generation)
    mine.acknowledge(decision)
    mine.open(decision.record.generation)
    return mine


def test_a_regroup_from_seal_to_opening() -> None:
    mine, made = Membership("b"), founding(0, "a", "b")
    assert (mine.generation, mine.client, mine.sealed, mine.is_sealed) == (-1, None, -1, False)
    mine.seal(0)
    assert mine.is_sealed
    assert mine.adopt(made) is None
    mine.acknowledge(made)
    assert (mine.generation, mine.acknowledged) == (-1, made)
    assert mine.open(0) is made
    assert (mine.generation, mine.client, mine.log, mine.acknowledged) == (0, 1, made.log, None)
    assert not mine.is_sealed


def test_what_is_sealed_is_sealed_once_and_for_all() -> None:
    mine = Membership("a")
    mine.seal(5)
    for older in (5, 4):
        with pytest.raises(SealedError, match=f"site 'a' has sealed generation 5 and cannot prepare {older}") as caught:
            mine.seal(older)
        assert caught.value.sealed == 5
    mine.seal(6)


def test_messages_of_an_older_attempt_are_refused() -> None:
    first = founding(0, "a", "b")
    mine, made = opened("a", first), regroup(1, first, "a")
    mine.seal(1)
    mine.acknowledge(made)
    mine.seal(2)
    for call in (lambda: mine.open(1), lambda: mine.acknowledge(made), lambda: mine.adopt(made)):
        with pytest.raises(SealedError) as caught:
            call()
        assert caught.value.sealed == 2
    assert mine.acknowledged is made  # it may have been opened elsewhere


def test_only_what_is_acknowledged_can_be_opened() -> None:
    mine = Membership("a")
    mine.seal(3)
    with pytest.raises(CallOrderError, match="has not acknowledged it"):
        mine.open(3)


def test_a_generation_that_others_have_opened_is_adopted() -> None:
    first = founding(0, "a", "b", "c")
    second = regroup(1, first, "a", "b")
    mine = opened("b", first)
    mine.seal(1)
    mine.acknowledge(second)
    mine.seal(2)
    third = regroup(2, second, "a", "b")
    with pytest.raises(CallOrderError, match="call adopt first"):
        mine.acknowledge(third)
    assert mine.adopt(third) is second
    assert (mine.generation, mine.is_sealed) == (1, True)
    mine.acknowledge(third)
    mine.open(2)
    assert mine.log == third.log


def test_a_generation_that_nobody_has_opened_is_not_adopted() -> None:
    first = founding(0, "a", "b", "c")
    mine = opened("b", first)
    mine.seal(1)
    mine.acknowledge(regroup(1, first, "a", "b"))
    mine.seal(2)
    made = regroup(2, first, "b", "c")
    assert mine.adopt(made) is None
    assert mine.acknowledged is None  # what is staged for it may go
    mine.acknowledge(made)
    assert mine.adopt(made) is None  # told twice
    assert mine.acknowledged is made
    assert mine.open(2).record.members == (1, 2)


def test_a_site_acknowledges_only_what_it_is_a_member_of() -> None:
    first = founding(0, "a", "b")
    mine = opened("b", first)
    mine.seal(1)
    with pytest.raises(CallOrderError, match="site 'b' is no member of generation 1"):
        mine.acknowledge(regroup(1, first, "a"))


def test_a_site_that_the_others_went_on_without_can_tell() -> None:
    mine = opened("b", founding(0, "a", "b"))
    assert not mine.was_dropped(0)
    assert mine.was_dropped(1)
    mine.seal(1)
    assert not mine.was_dropped(1)  # it was asked, and may still learn of the opening
    assert mine.was_dropped(2)


def test_the_coordinator_is_the_lowest_id_of_the_newest_generation() -> None:
    assert coordinator_of([Candidate("x", 2, 3), Candidate("y", 0, 1), Candidate("z", 1, 3)]) == "z"
    assert coordinator_of([Candidate("x"), Candidate("y", 4, 0)]) == "y"


def test_founders_are_coordinated_by_the_first_name() -> None:
    assert coordinator_of([Candidate("b"), Candidate("a"), Candidate("c")]) == "a"
    with pytest.raises(MembershipError, match="list is empty"):
        coordinator_of([])


def test_numbers_of_attempts_grow() -> None:
    assert next_generation([]) == 0
    assert next_generation([3, -1, 7]) == 8


def test_free_ids_were_never_anybodys() -> None:
    log = regroup(1, founding(0, "a", "b", "c"), "a").log
    assert log.newest.members == (0,)
    assert free_client(log) == 3
    assert free_client(log, taken=(3, 5)) == 4
    assert free_client(MembershipLog()) == 0
