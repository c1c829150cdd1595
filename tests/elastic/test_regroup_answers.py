"""What a site makes of calls that come late, twice or not at all, and who coordinates then."""

from __future__ import annotations

import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.elastic import attempt
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.roster import Roster
from lightning_parablock.elastic.seat import Seat, SiteOptions
from lightning_parablock.elastic.watcher import Watcher
from lightning_parablock.errors import (
    DroppedError,
    MembershipError,
    PeerLostError,
    RefusedError,
    SealedError,
    UnreachableError,
)
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Decision
from tests.support.local_arbiter import LocalLighthouse

SITES = {0: "A", 1: "B", 2: "C"}
FIRST = Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, sites=SITES)
SECOND = Record(1, (0, 1, 2), (), (0, 1, 2), 2, (0, 0), sites=SITES)
PROCESSES = {0: "iA", 1: "iB", 2: "iC"}


def _seat(client: int, *records: Record, sealed: int, min_clients: int = 1) -> Seat:
    name = SITES[client]
    options = SiteOptions(name, "h:1", min_clients, 60.0, 1, 5.0, "star", False)
    seat = Seat(options, f"{name}:1", f"{name}:2", incarnation=PROCESSES[client])
    seat.membership.log, seat.membership.sealed = MembershipLog(records), sealed
    seat.in_rounds, seat.run, seat.incarnations = True, "run", dict(PROCESSES)
    return seat


def _fresh(name: str, run: str = "", min_clients: int = 2) -> Seat:
    """A site that has opened nothing; a guest of a run that it names."""
    options = SiteOptions(name, "h:1", min_clients, 60.0, 1, 5.0, "star", False)
    seat = Seat(options, f"{name}:1", f"{name}:2", incarnation=f"i{name}")
    seat.run, seat.asked_client = run, 3 if run else None
    return seat


def _with_guest() -> tuple[Seat, tuple[Candidate, ...]]:
    """The coordinator of three members, and its list, in which a guest is ready."""
    seat = _seat(0, FIRST, sealed=1)
    guest = Candidate("d", "iD", "d:1", run="run", client=3, is_ready=True)
    return seat, (seat.me(), _seat(1, FIRST, sealed=1).me(), _seat(2, FIRST, sealed=1).me(), guest)


def _watcher(seat: Seat) -> Watcher:
    return Watcher(seat, LocalLighthouse().arbiter(), lambda: 1, lambda: None)


def _call(**said: Any) -> Any:
    return SimpleNamespace(said=said, caller=Identity("run", "A", "iA"), remaining_s=5.0, reading=nullcontext)


def test_one_that_missed_the_opening_does_not_keep_the_others_from_coordinating(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Client 0 has opened generation 1 at client 2 alone, and is lost: client 1 cannot know whether it may drive."""
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    behind, ahead = _seat(1, FIRST, sealed=1), _seat(2, FIRST, SECOND, sealed=1)
    listed = (behind.me(), ahead.me())
    watchers = [_watcher(behind), _watcher(ahead)]
    assert [watcher._coordinates(listed) for watcher in watchers] == [False, False]  # the list may be a little old
    now_s[0] += 5.1
    assert [watcher._coordinates(listed) for watcher in watchers] == [False, True]


def test_a_joiner_that_adopts_its_first_generation_is_in_the_rounds() -> None:
    founded = Record(0, (1, 2), (1, 2), (1, 2), 0, sites=SITES)
    joined = Record(1, (0, 1, 2), (0,), (1, 2, 0), 5, (4, 0), sites=SITES)
    after = Record(2, (0, 2), (), (2, 0), 6, (4, 0), sites=SITES, gone={1: "lost"})
    seat = Seat(SiteOptions("A", "h:1", 1, 60.0, 1, 5.0, "star", False), "A:1", "A:2", incarnation="iA")
    seat.asked_client = 0
    answers = Answers(seat, lambda decision: None)
    seat.membership.seal(1)
    answers._take(Decision(joined, MembershipLog((founded, joined)), {1: (4, 0), 2: (4, 0)}, 1), "run", PROCESSES)
    seat.membership.seal(2)  # "open" of generation 1 never comes
    log = MembershipLog((founded, joined, after))
    answers._take(Decision(after, log, {0: (4, 0), 2: (4, 0)}, 0), "run", {0: "iA", 2: "iC"})
    assert seat.membership.generation == 1 and seat.in_rounds
    assert (seat.incarnations, seat.run) == (PROCESSES, "run")
    answers.open(_call(generation=2))
    assert seat.incarnations == {0: "iA", 2: "iC"}
    assert _watcher(seat)._coordinates((seat.me(),))


def test_a_site_that_is_told_to_go_while_it_becomes_a_member_opens_first() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)
    seat.membership.seal(1)
    answers._take(Decision(SECOND, MembershipLog((FIRST, SECOND)), {}, 0), "run", PROCESSES)
    seat.is_leaving = True
    answers.open(_call(generation=1))
    assert seat.membership.generation == 1 and not seat.has_left
    seat.membership.seal(2)
    answers.open(_call(generation=2))  # without it
    assert seat.has_left


class _Carrier:
    is_closed = False

    def close(self) -> None:
        self.is_closed = True


def test_what_was_connected_for_an_abandoned_attempt_is_closed() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)
    carriers = [_Carrier(), _Carrier()]
    late: Any = SimpleNamespace(stage=lambda decision, look: None, connect=lambda decision, store, look: carriers[0])
    answers.attach(SimpleNamespace(seal=lambda: (None, 0), acknowledged_standing=lambda: None), late)  # type: ignore
    seat.membership.seal(1)
    answers._take(Decision(SECOND, MembershipLog((FIRST, SECOND)), {}, 0), "run", PROCESSES)
    answers.connect(_call(generation=1, store="x:1"))
    answers.seal()
    assert carriers[0].is_closed

    def connect(decision: Decision, store: str, look: Any) -> _Carrier:
        seat.membership.seal(4)  # a newer attempt begins while the members connect
        return carriers[1]

    third = Record(3, (0, 1, 2), (), (0, 1, 2), 3, (1, 0), sites=SITES)
    late.connect = connect
    seat.membership.seal(3)
    answers._take(Decision(third, MembershipLog((FIRST, third)), {}, 0), "run", PROCESSES)
    with pytest.raises(SealedError):
        answers.connect(_call(generation=3, store="x:1"))
    assert carriers[1].is_closed


def test_a_generation_that_cannot_be_opened_here_ends_the_site() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)

    def broken(carrier: object) -> None:
        raise RuntimeError("no memory")

    fetcher: Any = SimpleNamespace(stage=lambda decision, look: None)
    answers.attach(SimpleNamespace(open=broken), fetcher)  # type: ignore[arg-type]
    seat.membership.seal(1)
    answers._take(Decision(SECOND, MembershipLog((FIRST, SECOND)), {}, 0), "run", PROCESSES)
    with pytest.raises(RuntimeError, match="no memory"):
        answers.open(_call(generation=1))
    with pytest.raises(MembershipError, match=r"generation 1 cannot be opened here: RuntimeError.*no memory"):
        seat.check()


def test_a_dropped_site_learns_so_from_a_decision_too() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)

    def dropped(decision: Decision, look: object) -> None:
        raise DroppedError("site C was dropped")

    answers.attach(SimpleNamespace(), SimpleNamespace(stage=dropped))  # type: ignore[arg-type]
    seat.membership.seal(1)
    with pytest.raises(DroppedError):
        answers._take(Decision(SECOND, MembershipLog((FIRST, SECOND)), {}, 0), "run", PROCESSES)
    with pytest.raises(DroppedError):
        seat.check()


def test_a_site_that_sealed_a_number_by_itself_still_sees_that_it_was_dropped() -> None:
    seat = _seat(0, FIRST, sealed=0)
    Answers(seat, lambda decision: None).seal()  # its own timer, and the others have opened another generation 1
    others = _seat(1, FIRST, SECOND, sealed=1)
    watcher = _watcher(seat)
    with pytest.raises(DroppedError):
        watcher._refuse_to_be_a_ghost((seat.me(), others.me()))
    seat.is_leaving = True
    watcher._refuse_to_be_a_ghost((seat.me(), others.me()))
    assert seat.has_left


def test_two_parts_of_a_run_that_meet_again_say_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    first = replace(SECOND, members=(0,), order=(0,), gone={1: "lost", 2: "lost"})
    other = replace(SECOND, members=(1, 2), order=(1, 2), gone={0: "lost"})
    alone, mates = _seat(0, FIRST, first, sealed=1), [_seat(c, FIRST, other, sealed=1) for c in (1, 2)]
    alone.incarnations = {0: "iA"}
    watcher = _watcher(alone)
    watcher._warn_of_another_part((alone.me(), _seat(1, FIRST, sealed=0).me()))
    assert not caplog.messages, "one that is behind is no part"
    for _ in range(2):
        watcher._warn_of_another_part((alone.me(), *(seat.me() for seat in mates)))
    (said,) = caplog.messages
    assert "site A: another part of this run, with a model of its own, trains at site B, C, also in generation" in said
    now_s[0] += 31
    watcher._warn_of_another_part((alone.me(), *(seat.me() for seat in mates)))
    assert len(caplog.messages) == 2
    _watcher(mates[0])._warn_of_another_part(tuple(seat.me() for seat in mates))
    assert len(caplog.messages) == 2


def test_one_that_sealed_for_a_coordinator_that_was_lost_sees_that_the_others_used_its_number_again() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)
    answers.prepare(_call(generation=1))  # A reached this site alone, and was lost
    without_it = replace(SECOND, members=(1,), order=(1,), gone={0: "lost", 2: "lost"})
    others = _seat(1, FIRST, without_it, sealed=1)
    with pytest.raises(DroppedError, match=r"continued without it, with generation 1; .* since generation 0"):
        _watcher(seat)._refuse_to_be_a_ghost((seat.me(), others.me()))


def test_one_that_has_acknowledged_waits_for_the_opening_that_others_have_heard_of() -> None:
    seat = _seat(2, FIRST, sealed=0)
    answers, watcher, others = Answers(seat, lambda decision: None), _watcher(seat), _seat(1, FIRST, SECOND, sealed=1)
    answers.prepare(_call(generation=1))
    answers._take(Decision(SECOND, MembershipLog((FIRST, SECOND)), {}, 0), "run", PROCESSES)
    watcher._refuse_to_be_a_ghost((seat.me(), others.me()))
    answers.prepare(_call(generation=2))  # "open" never came, and the next attempt has begun
    watcher._refuse_to_be_a_ghost((seat.me(), others.me()))
    third = Record(2, (0, 1, 2), (), (0, 1, 2), 2, (0, 0), sites=SITES)
    answers._take(Decision(third, MembershipLog((FIRST, SECOND, third)), {}, 0), "run", PROCESSES)
    answers.open(_call(generation=2))
    watcher._refuse_to_be_a_ghost((seat.me(), _seat(1, FIRST, SECOND, third, sealed=2).me()))


def test_the_loss_of_a_founder_is_an_error_also_where_the_run_begins_with_a_checkpoint() -> None:
    resumed = Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 7, (6, 2), sites=SITES)
    seat = _seat(0, resumed, sealed=0)
    seat.in_rounds = False
    with pytest.raises(PeerLostError, match="site B"):
        _watcher(seat)._refuse_to_lose_a_founder((seat.me(), _seat(2, resumed, sealed=0).me()))


def test_too_few_members_stop_at_the_merge_without_anybody_noticing_a_broken_link(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    seat = _seat(0, FIRST, sealed=0, min_clients=2)
    seals: list[int] = []
    watcher = Watcher(seat, LocalLighthouse().arbiter(), lambda: 1, lambda: seals.append(seat.membership.seal(1) or 1))
    watcher._pause_where_too_few((seat.me(), _seat(1, FIRST, sealed=0).me()))
    assert not seals
    watcher._pause_where_too_few((seat.me(),))
    watcher._pause_where_too_few((seat.me(),))
    assert seals == [1]
    now_s[0] += 40
    watcher._roster.note_too_few(["A"])
    said = "parablock: 1 of 3 sites is left (A), fewer than min_clients=2: the run waits; start the lost sites again"
    words = f"{said} with the same command, in the next {{}} s"
    assert caplog.messages == [words.format(60), words.format(20)]


def test_a_guest_with_which_attempts_fail_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    seat, listed = _with_guest()
    roster = Roster(seat, lambda: 5)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: {one.site: {o.site for o in order} for one in order})
    assert [one.site for one in roster.next_members(listed)] == ["A", "B", "C", "d"]
    roster.note_end(listed, has_opened=False)
    roster.note_end(listed, has_opened=False)
    assert [one.site for one in roster.next_members(listed)] == ["A", "B", "C"]
    now_s[0] += 61
    assert [one.site for one in roster.next_members(listed)] == ["A", "B", "C", "d"]


def test_a_site_that_leaves_is_not_counted_where_too_few_are_left(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    two = replace(FIRST, members=(0, 1), joiners=(0, 1), order=(0, 1))
    seat = _seat(0, two, sealed=1, min_clients=2)
    seat.incarnations.pop(2)
    listed = (seat.me(), replace(_seat(1, two, sealed=1).me(), is_leaving=True))
    roster = Roster(seat, lambda: 5)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: {one.site: {o.site for o in order} for one in order})
    assert roster.next_members(listed) == []
    assert "1 of 2 sites is left (A), fewer than min_clients=2: the run waits; start" in caplog.text
    assert "in the next 60 s" in caplog.text


def test_founders_whose_attempts_fail_are_not_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    seat, other = _fresh("A"), _fresh("B")
    listed = (seat.me(), other.me())
    roster = Roster(seat, lambda: -1)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: {one.site: {o.site for o in order} for one in order})
    for _ in range(4):
        roster.note_end(listed, has_opened=False)
        assert [one.site for one in roster.founders(listed)] == ["A", "B"]


@pytest.mark.parametrize("is_heard", [False, True], ids=["the call is lost", "the answer is lost"])
def test_a_founder_is_asked_to_open_until_it_answers(monkeypatch: pytest.MonkeyPatch, is_heard: bool) -> None:
    seats = {f"{name}:1": _fresh(name) for name in "AB"}
    openings: list[Decision] = []
    answers = {desk: Answers(seat, openings.append) for desk, seat in seats.items()}
    lost = ["B:1"]

    def call(desk: str, name: str, said: dict[str, Any], **how: Any) -> Reply:
        is_lost = name == "open" and desk in lost
        if is_lost:
            lost.remove(desk)
        reply = Reply({}) if is_lost and not is_heard else getattr(answers[desk], name)(_call(**said))
        if is_lost:
            raise UnreachableError("nothing came", "silent")
        return reply

    monkeypatch.setattr(attempt, "call", call)
    founding = attempt.Attempt(seats["A:1"], [seat.me() for seat in seats.values()], is_founding=True)
    founding._run()
    assert founding.has_opened and not lost
    assert [seat.membership.generation for seat in seats.values()] == [0, 0]
    assert len(openings) == 2, "each founder opens once"


def test_a_guest_whose_run_has_lost_all_its_members_founds_no_other_one() -> None:
    guest, b, c = _fresh("A", "R"), _fresh("B"), _fresh("C")
    listed = (guest.me(), b.me(), c.me())
    assert [_watcher(seat)._coordinates(listed) for seat in (guest, b, c)] == [False, True, False]
    assert [one.site for one in Roster(b, lambda: -1).founders(listed)] == ["B", "C"]
    assert Roster(b, lambda: -1).founders(listed[:2]) == [], "a guest is none of min_clients"
    guests = (guest.me(), _fresh("D", "R").me())
    assert not _watcher(guest)._coordinates(guests), "they would found it in the name of the one that is gone"


def test_a_member_that_not_all_reach_is_left_out_longer_each_time(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    seat = _seat(0, FIRST, sealed=1)
    others = (seat.me(), _seat(1, FIRST, sealed=1).me())
    reached = {"A": {"A", "B"}, "B": {"A", "B"}, "C": {"C"}}
    roster = Roster(seat, lambda: 5)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: reached)
    member = _seat(2, FIRST, sealed=1).me()
    processes = [
        member,
        replace(member, incarnation="iC2", is_ready=True),
        replace(member, incarnation="iC3", is_ready=True),
    ]
    for process, wait_s in zip(processes, (60, 120, 240), strict=True):
        assert [one.site for one in roster.next_members((*others, process))] == ["A", "B", "C"]
        roster.note_end((*others, process), has_opened=False)
        roster.note_end((*others, process), has_opened=False)
        now_s[0] += wait_s - 1
        again = replace(process, incarnation=f"{process.incarnation}, started again", is_ready=True)
        assert [one.site for one in roster.next_members((*others, process, again))] == ["A", "B"]
        now_s[0] += 2
        assert [one.site for one in roster.next_members((*others, again))] == ["A", "B", "C"]


def test_a_guest_that_not_all_reach_is_let_in_once_its_ports_are_open(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    seat, listed = _with_guest()
    reached = {"A": set("ABC"), "B": set("ABC"), "C": set("ABC"), "d": {"d"}}
    roster = Roster(seat, lambda: 5)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: reached)
    for wait_s in (60, 120):
        for _ in range(2):
            assert [one.site for one in roster.next_members(listed)] == ["A", "B", "C", "d"]
            roster.note_end(listed, has_opened=False)
        now_s[0] += wait_s - 1
        assert [one.site for one in roster.next_members(listed)] == ["A", "B", "C"]
        now_s[0] += 2


def test_a_founder_that_not_all_reach_can_found_the_run_once_its_ports_are_open(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    now_s = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    seat = _fresh("A")
    listed = (seat.me(), _fresh("B").me(), _fresh("C").me())
    roster = Roster(seat, lambda: -1)
    monkeypatch.setattr(roster._reach, "of_all", lambda order: {"A": {"A", "C"}, "B": {"B"}, "C": {"A", "C"}})
    roster.note_end(listed, has_opened=False)
    roster.note_end(listed, has_opened=False)
    assert "site B is left out: not all of the other sites reach it" in caplog.text
    assert "It is tried again in 60 s at the earliest" in caplog.text
    assert [one.site for one in roster.founders(listed)] == ["A", "C"]
    now_s[0] += 61
    assert [one.site for one in roster.founders(listed)] == ["A", "B", "C"]


@pytest.mark.parametrize("step", ["prepare", "decision", "connect", "open"])
def test_a_site_that_is_no_member_changes_nothing(step: str) -> None:
    """It is a guest, or one that the run has continued without."""
    seat = _seat(2, FIRST, sealed=0)
    answers = Answers(seat, lambda decision: None)
    call = _call(generation=1)
    call.caller = Identity("run", "D", "iD")
    with pytest.raises(RefusedError, match="site 'D' is no member of generation 0, and cannot change who takes part"):
        getattr(answers, step)(call)
    assert seat.membership.sealed == 0
