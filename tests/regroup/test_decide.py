"""What a regroup leads to, case by case: the rules of docs/method.md, "Elastic membership"."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest

from lightning_parablock.errors import MembershipError, TooFewSitesError, WeightsLostError
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.log import MembershipLog, Record, Restored
from lightning_parablock.regroup.report import Report, Source, Standing

SITES = {0: "a", 1: "b", 2: "c"}
FOUNDED = Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, sites=SITES, samples={0: 10, 1: 11, 2: 12})
LOG = MembershipLog((FOUNDED,))
STAR = Rules(topology="star", n_blocks=2)
SHARDED = Rules(topology="sharded", n_blocks=2)


def member(client: int, landed: Key = (3, 1), started: int = 4, log: MembershipLog = LOG, **more) -> Report:
    standing = Standing(log, landed, more.pop("served", {}), more.pop("backups", {}))
    return Report(log.newest.sites[client], None, standing, None, started, **more)


def guest(site: str, client: int | None = None, **more) -> Report:
    return Report(site, client, None, None, **more)


# --- founding ---------------------------------------------------------------------------------------------------------


def test_founders_are_numbered_in_the_order_of_their_names() -> None:
    made = decide(0, [guest("c", samples=7), guest("a", samples=5), guest("b", samples=6)], STAR)
    assert made.record == Record(
        0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, BEFORE_ALL, {0: "a", 1: "b", 2: "c"}, {0: 5, 1: 6, 2: 7}
    )
    assert (made.donor, made.landed, made.sources, made.refused) == (None, {}, (), {})
    assert made.log.records == (made.record,)


def test_a_founding_begins_with_the_newest_checkpoint() -> None:
    made = decide(0, [guest("a", checkpoint_round=4), guest("b", checkpoint_round=7), guest("c")], STAR)
    assert (made.record.first_round, made.donor) == (7, 1)
    assert made.record.kept == (6, 1)  # nothing of a round before the checkpoint's is in flight


def test_of_equal_checkpoints_the_first_one_counts() -> None:
    made = decide(0, [guest("b", checkpoint_round=7), guest("a", checkpoint_round=7)], STAR)
    assert made.donor == 0


def test_a_founding_begins_with_the_newest_checkpoint_of_the_youngest_run() -> None:
    old = guest("a", checkpoint_round=9, lineage=("x",))
    young = [guest(site, checkpoint_round=n, lineage=("x", "y")) for site, n in (("b", 3), ("c", 5))]
    for reports in itertools.permutations([old, *young]):
        made = decide(0, reports, STAR)
        assert (made.record.first_round, made.record.kept, made.donor) == (5, (4, 1), 2)


def test_who_leaves_founds_nothing() -> None:
    with pytest.raises(TooFewSitesError, match="1 site is here"):
        decide(0, [guest("a"), guest("b", is_leaving=True)], replace(STAR, min_clients=2))


def test_a_site_that_was_in_the_run_does_not_found_it_anew() -> None:
    reports = [guest("a"), guest("b", noted=("run",))]
    with pytest.raises(WeightsLostError, match=r"site 'b' had started this run before.*ckpt_path"):
        decide(5, reports, STAR)
    made = decide(5, [guest("a", checkpoint_round=3), guest("b", noted=("run",))], STAR)
    assert (made.record.generation, made.donor, made.record.first_round) == (5, 0, 3)


def test_a_site_that_was_in_a_run_does_not_go_back_to_the_run_that_it_had_continued() -> None:
    old = [guest(site, checkpoint_round=9, lineage=("x",), noted=("x", "younger run")) for site in "ab"]
    with pytest.raises(
        WeightsLostError,
        match=r"'a', 'b' had started run younger , which had continued run x.*delete parablock-run-of-a-at",
    ):
        decide(5, old, STAR)
    young = guest("c", checkpoint_round=3, lineage=("x", "younger run"))
    assert decide(5, [*old, young], STAR).record.first_round == 3
    other = [guest("a", checkpoint_round=9, lineage=("x", "other"), noted=("x", "younger run"))]
    assert decide(5, other, STAR).record.first_round == 9  # the user has chosen it


def test_an_acknowledged_founding_that_nobody_opened_never_existed() -> None:
    first = decide(0, [guest("a"), guest("b")], STAR)
    waiting = Standing(first.log, first.record.kept)
    made = decide(1, [Report("b", None, None, waiting), guest("c")], STAR)
    assert made.record.sites == {0: "b", 1: "c"}


# --- who is a member --------------------------------------------------------------------------------------------------


def test_survivors_leavers_joiners_and_the_lost() -> None:
    made = decide(
        4,
        [member(0), member(1, is_leaving=True), guest("d", samples=9)],
        STAR,
        why_gone={2: "its host was switched off"},
    )
    assert (made.record.generation, made.record.members, made.record.joiners) == (4, (0, 3), (3,))
    assert made.record.gone == {1: "left", 2: "its host was switched off"}
    assert made.record.samples == {3: 9}
    assert made.record.sites == {**SITES, 3: "d"}
    assert made.log.records == (FOUNDED, made.record)
    assert list(made.landed) == [0, 1]


def test_why_a_member_is_lost_may_be_unknown() -> None:
    assert decide(1, [member(0), member(1)], STAR).record.gone == {2: "lost"}


def test_a_site_that_was_lost_and_came_back_is_a_joiner_with_its_own_id() -> None:
    made = decide(1, [member(0), guest("b"), member(2)], STAR)
    assert (made.record.members, made.record.joiners, made.record.gone) == ((0, 1, 2), (1,), {})


def test_a_leaver_that_never_was_a_member_is_not_counted() -> None:
    made = decide(1, [member(0), member(1), member(2), guest("d", is_leaving=True)], STAR)
    assert (made.record.members, made.record.gone, made.refused) == ((0, 1, 2), {}, {})


def test_the_last_member_may_leave_if_somebody_takes_over() -> None:
    made = decide(1, [member(1, landed=(2, 0), is_leaving=True), guest("d")], STAR)
    assert (made.record.members, made.record.order, made.donor) == ((3,), (3,), 1)


def test_ids_of_joiners() -> None:
    joiners = [guest("x"), guest("e"), guest("d", client=3), guest("b"), guest("h", client=9)]
    made = decide(1, [member(0), member(2), *joiners], STAR)
    assert {made.record.sites[client]: client for client in made.record.joiners} == {
        "b": 1,  # its own
        "d": 3,  # as it asks
        "e": 4,
        "h": 9,
        "x": 5,
    }


def test_an_id_is_refused_by_name_and_the_others_go_on() -> None:
    made = decide(1, [member(0), member(1), guest("d", client=2), guest("c", client=7), guest("e", client=-1)], STAR)
    assert made.record.members == (0, 1)
    assert "belongs to site 'c'" in made.refused["d"]
    assert "has been client 2" in made.refused["c"]
    assert "negative" in made.refused["e"]


def test_of_two_joiners_that_ask_for_one_id_the_first_name_gets_it() -> None:
    made = decide(1, [member(0), guest("f", client=5), guest("e", client=5)], STAR)
    assert (made.record.sites[5], list(made.refused)) == ("e", ["f"])


def test_too_few() -> None:
    rules = replace(STAR, min_clients=3)
    with pytest.raises(TooFewSitesError, match=r"2 sites are here \(sites 'a', 'b'\), and min_clients is 3"):
        decide(1, [member(0), member(1)], rules)
    with pytest.raises(TooFewSitesError):  # a leaver is no member
        decide(1, [member(0), member(1), member(2, is_leaving=True)], rules)
    with pytest.raises(TooFewSitesError):  # nor is one that is refused
        decide(1, [member(0), member(1), guest("d", client=0)], rules)
    decide(1, [member(0), member(1), guest("d")], rules)


def test_the_order_of_reports_does_not_matter() -> None:
    reports = [member(0), member(2, landed=(4, 0), is_leaving=True), guest("d"), guest("e", client=7), guest("b")]
    made = [decide(1, some, SHARDED) for some in itertools.permutations(reports)]
    assert all(one == made[0] for one in made)


# --- which generation is the current one ------------------------------------------------------------------------------

NEXT = Record(2, (0, 1), (), (0, 1), 5, (3, 1), SITES, gone={2: "lost"})
NEXT_LOG = LOG.and_then(NEXT)


def in_between(client: int, landed: Key = (3, 0)) -> Report:
    """A member that has acknowledged generation 2 and not opened it."""
    return replace(member(client, landed), acknowledged=Standing(NEXT_LOG, NEXT.kept))


def test_a_generation_that_one_has_opened_counts_for_all_that_have_acknowledged_it() -> None:
    made = decide(3, [member(0, (4, 0), log=NEXT_LOG), in_between(1)], STAR)
    assert made.log.records[:-1] == NEXT_LOG.records
    assert made.landed == {0: (4, 0), 1: NEXT.kept}
    assert made.record.joiners == ()


def test_a_generation_that_nobody_has_opened_never_existed() -> None:
    made = decide(3, [in_between(0), in_between(1), member(2)], STAR)
    assert made.log.records[:-1] == LOG.records
    assert made.record.members == (0, 1, 2)
    assert made.landed == {0: (3, 0), 1: (3, 0), 2: (3, 1)}


def test_a_member_of_an_older_generation_is_a_joiner() -> None:
    made = decide(3, [member(0, (4, 0), log=NEXT_LOG), in_between(1), member(2, landed=(9, 0), started=9)], STAR)
    assert (made.record.joiners, 2 in made.landed, made.record.kept) == ((2,), False, (4, 0))


def test_an_acknowledged_generation_of_another_coordinator_is_not_the_one_with_its_number() -> None:
    other = LOG.and_then(replace(NEXT, members=(1, 2), order=(1, 2)))
    stray = replace(member(1), acknowledged=Standing(other, NEXT.kept))
    made = decide(3, [member(0, (4, 0), log=NEXT_LOG), stray], STAR)
    assert (made.record.members, made.record.joiners) == ((0, 1), (1,))


def test_two_opened_logs_that_differ_are_refused() -> None:
    other = LOG.and_then(replace(NEXT, members=(1, 2), order=(1, 2)))
    with pytest.raises(MembershipError, match="sites 'a', 'c' differ although both end with generation 2"):
        decide(3, [member(0, log=NEXT_LOG), member(2, log=other)], STAR)


def test_sites_that_are_no_members_any_more_have_nothing_to_give() -> None:
    with pytest.raises(WeightsLostError, match="no member of generation 2 is here"):
        decide(3, [member(2, log=NEXT_LOG), guest("d")], STAR)


def test_a_number_that_is_in_use_is_refused() -> None:
    with pytest.raises(MembershipError, match="generation 2 cannot begin"):
        decide(2, [member(0), in_between(1)], STAR)


def test_one_site_reports_once() -> None:
    with pytest.raises(MembershipError, match="site 'a' has reported more than once"):
        decide(1, [member(0), guest("a")], STAR)


# --- what is kept, and n ----------------------------------------------------------------------------------------------


def test_what_has_landed_on_one_survivor_is_kept_and_the_lowest_such_one_gives_it() -> None:
    made = decide(1, [member(0, (2, 1)), member(1, (3, 0)), member(2, (3, 0))], STAR)
    assert (made.record.kept, made.donor) == ((3, 0), 1)
    assert made.landed == {0: (2, 1), 1: (3, 0), 2: (3, 0)}


def test_what_has_landed_on_a_leaver_alone_is_kept() -> None:
    made = decide(1, [member(0, (2, 1)), member(2, (3, 0), is_leaving=True)], STAR)
    assert (made.record.kept, made.donor) == ((3, 0), 2)


def test_n_is_one_more_than_the_newest_started_round() -> None:
    made = decide(1, [member(0, started=4), member(1, started=6)], STAR)
    assert made.record.first_round == 7


def test_n_is_more_than_the_round_of_the_newest_kept_exchange() -> None:
    made = decide(1, [member(0, landed=(5, 0), started=-1)], STAR)
    assert made.record.first_round == 6


def test_n_never_falls() -> None:
    made = decide(3, [member(0, started=3, log=NEXT_LOG), member(1, started=2, log=NEXT_LOG)], STAR)
    assert made.record.first_round == NEXT.first_round == 5


# --- servers ----------------------------------------------------------------------------------------------------------


def test_survivors_keep_their_place_and_joiners_come_last() -> None:
    log = MembershipLog((replace(FOUNDED, order=(2, 0, 1)),))
    made = decide(1, [guest("d"), member(1, log=log), member(2, log=log), guest("a")], SHARDED)
    assert made.record.order == (2, 1, 0, 3)


def test_a_star_keeps_its_server_or_takes_the_next_survivor() -> None:
    log = MembershipLog((replace(FOUNDED, order=(2, 0, 1)),))
    assert decide(1, [member(0, log=log), member(2, log=log)], STAR).record.order[0] == 2
    assert decide(1, [member(1, log=log), member(0, log=log), guest("c")], STAR).record.order[0] == 0


def label(round_index: int, block: int, generation: int = 0) -> tuple[Key, int]:
    return (round_index, block), generation


BLOCKS = {0: (label(2, 0), label(4, 0)), 1: (label(1, 1), label(3, 1))}
WITH_STATE = replace(STAR, has_server_state=True)


def test_a_star_with_its_server_goes_on_from_the_state_as_of_what_is_kept() -> None:
    made = decide(1, [member(0, (3, 1), served=BLOCKS), member(1, (2, 0))], WITH_STATE)
    assert made.sources == (Source(0, 0, 0, label(2, 0)), Source(1, 0, 0, label(3, 1)))
    assert made.record.restored == ()


def test_a_lost_piece_takes_its_newest_backup_that_is_not_newer_than_what_is_kept() -> None:
    backups = {(0, 0): (label(0, 0), label(2, 0), label(4, 0))}
    made = decide(1, [member(1, (3, 1), backups=backups), member(2, (3, 1))], WITH_STATE)
    assert made.sources == (Source(0, 0, 1, label(2, 0)), Source(1, 0, None, None))
    assert made.record.restored == (Restored(0, 0, label(2, 0)), Restored(1, 0, None))


def test_of_several_holders_the_newest_version_counts_and_then_the_lowest_id() -> None:
    one, two = {(0, 0): (label(0, 0),)}, {(0, 0): (label(2, 0),)}
    rules = replace(WITH_STATE, n_blocks=1)
    assert decide(1, [member(1, backups=one), member(2, backups=two)], rules).sources[0].holder == 2
    assert decide(1, [member(1, backups=two), member(2, backups=two)], rules).sources[0].holder == 1


def test_a_piece_that_was_served_again_is_newer_than_its_first_version() -> None:
    backups = {(0, 0): (label(2, 0, 1), label(2, 0, 0))}
    made = decide(3, [member(1, (3, 1), backups=backups)], replace(WITH_STATE, n_blocks=1))
    assert made.sources == (Source(0, 0, 1, label(2, 0, 1)),)


def test_sharded_pieces_of_all_former_servers_have_a_source() -> None:
    rules = replace(SHARDED, n_blocks=1, has_server_state=True)
    served = {0: (label(2, 0),)}
    made = decide(1, [member(0, served=served), member(2, served=served, backups={(0, 1): (label(0, 0),)})], rules)
    assert made.sources == (
        Source(0, 0, 0, label(2, 0)),
        Source(0, 1, 2, label(0, 0)),
        Source(0, 2, 2, label(2, 0)),
    )


def test_a_leaver_gives_its_piece() -> None:
    made = decide(1, [member(0, served=BLOCKS, is_leaving=True), member(1)], WITH_STATE)
    assert made.sources[0] == Source(0, 0, 0, label(2, 0))
    assert made.record.restored == ()


def test_a_server_that_came_back_has_lost_its_piece() -> None:
    made = decide(1, [guest("a"), member(1, backups={(1, 0): (label(1, 1),)})], WITH_STATE)
    assert made.record.restored == (Restored(0, 0, None), Restored(1, 0, label(1, 1)))


def test_a_server_that_has_forgotten_too_much_is_an_error() -> None:
    with pytest.raises(MembershipError, match="site 'a' no longer has the server state of block 0"):
        decide(1, [member(0, (3, 1), served={0: (label(4, 0),), 1: ()})], WITH_STATE)


def test_servers_without_state_have_no_sources() -> None:
    assert decide(1, [member(1), member(2)], SHARDED).sources == ()


# --- secure sums ------------------------------------------------------------------------------------------------------

SECURE = replace(SHARDED, drops=True, roster=frozenset("abcd"), most_members=3)


def test_what_is_not_kept_is_dropped_and_the_log_says_so() -> None:
    reports = [member(0, landed=(3, 1), started=4), member(1, landed=(3, 0), started=5)]
    made = decide(1, reports, SECURE)
    assert (made.record.drops, made.record.kept, made.record.first_round) == (True, (3, 1), 6)
    keys = [(3, 1), (4, 0), (5, 1), (6, 0)]
    assert [made.log.has_dropped(key) for key in keys] == [False, True, True, False]
    assert [made.log.contributors(key, (0, 1)) for key in keys] == [(0, 1), (), (), (0, 1)]
    redone = decide(1, reports, SHARDED)
    assert redone.record == replace(made.record, drops=False), "nothing else differs"
    assert not any(redone.log.has_dropped(key) for key in keys)


def test_what_is_dropped_once_stays_dropped() -> None:
    first = decide(1, [member(0, landed=(3, 1), started=4), member(1, landed=(3, 1), started=4)], SECURE)
    again = [member(client, landed=(4, 0), started=5, log=first.log) for client in (0, 1)]
    log = decide(2, again, SECURE).log
    assert [log.has_dropped(key) for key in [(3, 1), (4, 0), (5, 1), (6, 0)]] == [False, True, True, False]


def test_only_sites_of_the_roster_join_and_no_more_than_one_sum_can_hold() -> None:
    made = decide(1, [member(0), member(1), guest("e"), guest("d"), guest("c")], SECURE)
    assert made.record.members == (0, 1, 2), "of those that may, the first by name"
    assert made.refused.keys() == {"d", "e"}
    assert "not in the roster" in made.refused["e"] and "as many sites as one secure sum can hold" in made.refused["d"]


def test_a_plain_record_is_written_as_it_always_was() -> None:
    assert "drops" not in FOUNDED.to_json()
    dropping = replace(FOUNDED, drops=True)
    assert Record.from_json(dropping.to_json()) == dropping
