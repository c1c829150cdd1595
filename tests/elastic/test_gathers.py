"""How long a collective waits for whom."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import Event
from typing import Any

import pytest

from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.gathered import Gathered, packed
from lightning_parablock.elastic.gathers import Gathers
from lightning_parablock.errors import PeerTimeoutError, ProtocolError, RefusedError, UnreachableError
from lightning_parablock.regroup.log import MembershipLog, Record
from tests.elastic.seats import SITES, THREE, LoneSeat


class _Alone:
    """The hub, which waits for another member."""

    client, log, is_apart = 0, MembershipLog((Record(0, (0, 1), (), (0, 1), 0),)), False

    def __init__(self) -> None:
        self.gathers: Gathers | None = None
        self.checks = 0

    def check(self) -> None:
        self.checks += 1

    def describe(self, client: int) -> str:
        return f"site {client}"

    def ask(self, *args: Any) -> Any:
        raise AssertionError("no other site is asked here")


def _gathers(limit_s: float, apart_limit_s: float, monkeypatch: pytest.MonkeyPatch) -> tuple[_Alone, Gathers]:
    monkeypatch.setattr("lightning_parablock.elastic.gathers._POLL_S", 0.05)
    monkeypatch.setattr("lightning_parablock.elastic.gathers._ASK_S", 1000.0)
    site = _Alone()
    gathers = Gathers(site, limit_s, apart_limit_s)  # type: ignore[arg-type]
    monkeypatch.setattr(gathers, "_ask_who_has_left", lambda number, slot: None)
    return site, gathers


def test_a_slow_member_is_waited_for_as_long_as_a_straggler(monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(60.0, 0.2, monkeypatch)
    came = threading.Timer(1.0, lambda: gathers._collect((3, 0), "mean", 1, b"theirs"))
    came.start()
    assert gathers.gather("mean", b"mine", 3) == {0: b"mine", 1: b"theirs"}
    came.join()
    assert site.checks > 1


@pytest.mark.parametrize(("is_apart", "option"), [(False, "straggler_timeout_s=0.2"), (True, "rejoin_timeout_s=0.1")])
def test_the_error_names_the_option(is_apart: bool, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(0.2, 0.1, monkeypatch)
    site.is_apart = is_apart
    with pytest.raises(
        PeerTimeoutError, match=rf"collective 0 of round 3 \(mean\): site 1 has not come within {option} s"
    ):
        gathers.gather("mean", b"mine", 3)


def test_a_participant_collects_and_not_one_that_has_joined_since(monkeypatch: pytest.MonkeyPatch) -> None:
    """Client 0 begins with round 5: it never comes to the collectives of round 3, and could not answer there."""
    site, gathers = _gathers(60.0, 60.0, monkeypatch)
    begun = Record(1, (1, 2), (), (1, 2), 0)
    joined = Record(2, (0, 1, 2), (0,), (0, 1, 2), 5)
    site.client, site.log = 2, MembershipLog((begun, joined))  # type: ignore[misc]
    asked: list[int] = []

    def ask(client: int, *args: Any) -> Reply:
        asked.append(client)
        return Reply({"is_complete": True, "sizes": [[1, 1], [2, 1]]}, b"xy")

    monkeypatch.setattr(site, "ask", ask)
    assert gathers.gather("mean", b"y", 3) == {1: b"x", 2: b"y"}
    assert asked == [1]
    assert gathers.gather("mean", b"y", 5) == {1: b"x", 2: b"y"}
    assert asked == [1, 0]


class _Looks:
    """A wait whose limit is a number of looks at it."""

    def __init__(self, limit_s: float, reports: object) -> None:
        self.limit_s, self._left = limit_s, limit_s

    @property
    def is_over(self) -> bool:
        self._left -= 1
        return self._left < 0

    def report(self, what: object) -> None:
        pass


def test_each_opening_gives_the_whole_time_again(monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(4.0, 60.0, monkeypatch)
    monkeypatch.setattr("lightning_parablock.elastic.gathers.LimitedWait", _Looks)
    seen: list[int] = []
    later = [MembershipLog((*site.log.records, Record(n, (0, 1), (), (0, 1), 9))) for n in (1, 2)]

    def collect(*args: object) -> None:
        seen.append(site.log.generation)
        if len(seen) % 3 == 0 and later:
            site.log = later.pop(0)  # type: ignore[misc]

    monkeypatch.setattr(gathers, "_collect", collect)
    with pytest.raises(PeerTimeoutError, match="straggler_timeout_s=4 s"):
        gathers.gather("mean", b"mine", 3)
    assert seen == [0, 0, 0, 1, 1, 1, 2, 2, 2, 2]


def test_a_site_without_a_log_says_that_it_is_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(1.0, 1.0, monkeypatch)
    site.log = MembershipLog()  # type: ignore[misc]
    call = Call(
        {"number": (3, 0), "what": "mean", "client": 1}, memoryview(b"x"), Identity("r", "b", "1"), 1.0, 0.0, Event()
    )
    with pytest.raises(RefusedError, match="no generation is open at this site yet"):
        gathers.answer_gather(call)


# --- members that do not tell the truth -------------------------------------------------------------------------------


def _among_three(answer: Callable[[int, str], Reply], monkeypatch: pytest.MonkeyPatch) -> tuple[LoneSeat, Gathers]:
    """Site a, which collects from b and c."""
    monkeypatch.setattr("lightning_parablock.elastic.gathers._POLL_S", 0.02)
    monkeypatch.setattr("lightning_parablock.elastic.gathers._ASK_S", 0.0)
    monkeypatch.setattr("lightning_parablock.elastic.gathers._PAUSE_S", 0.001)
    seat = LoneSeat("a", THREE, answer)
    return seat, Gathers(seat, 1.0, 1.0)


def _comes(gathers: Gathers, site: str, client: int, payload: bytes, number: tuple[int, int] = (3, 0)) -> Reply:
    said = {"number": number, "what": "mean", "client": client}
    return gathers.answer_gather(Call(said, memoryview(payload), Identity("run", site, "1"), 0.0, 0.0, Event()))


def _nobody_has_left(client: int, name: str) -> Reply:
    return Reply({"is_complete": False})


def test_a_site_sends_its_own_figure_and_no_other_sites(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gathers = _among_three(_nobody_has_left, monkeypatch)
    _comes(gathers, "b", 1, b"of b")
    with pytest.raises(RefusedError, match="site 'c' is client 2, and cannot speak for client 1"):
        _comes(gathers, "c", 1, b"of c")
    with pytest.raises(RefusedError, match="site 'x' has no client id"):
        _comes(gathers, "x", 1, b"of a stranger")
    _comes(gathers, "c", 2, b"of c")
    assert gathers.gather("mean", b"of a", 3) == {0: b"of a", 1: b"of b", 2: b"of c"}


def test_a_stranger_does_not_get_what_the_members_have_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    _, gathers = _among_three(_nobody_has_left, monkeypatch)
    call = Call({"number": (3, 0)}, memoryview(b""), Identity("run", "x", "1"), 0.0, 0.0, Event())
    with pytest.raises(RefusedError, match="site 'x' has no client id"):
        gathers.answer_kept(call)


def test_a_site_that_joins_later_takes_no_part_in_earlier_collectives(monkeypatch: pytest.MonkeyPatch) -> None:
    seat, gathers = _among_three(_nobody_has_left, monkeypatch)
    later = Record(1, (0, 1, 2, 3), (3,), (0, 1, 2, 3), 5, sites={**SITES, 3: "d"})
    seat.membership.log = THREE.and_then(later)
    with pytest.raises(RefusedError, match=r"site d \(client 3\) takes no part in collective 0 of round 3"):
        _comes(gathers, "d", 3, b"of d")
    assert not _comes(gathers, "d", 3, b"of d", (5, 0)).said["is_complete"]


def test_a_site_that_calls_for_many_collectives_does_not_crowd_out_the_one_that_runs(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, gathers = _among_three(_nobody_has_left, monkeypatch)
    _comes(gathers, "b", 1, b"of b")
    for index in range(20):
        _comes(gathers, "c", 2, b"junk", (10**9, index))
    assert {number: set(slot.payloads) for number, slot in gathers._slots.items()} == {(3, 0): {1}, (10**9, 19): {2}}
    _comes(gathers, "c", 2, b"of c")
    assert gathers.gather("mean", b"of a", 3) == {0: b"of a", 1: b"of b", 2: b"of c"}
    assert set(gathers._slots) == {(3, 0)}


KEPT = {0: b"of a", 1: b"of b", 2: b"of c"}


def test_one_that_says_it_has_left_does_not_speak_for_those_that_have_not(monkeypatch: pytest.MonkeyPatch) -> None:
    forged = {**KEPT, 1: b"forged"}
    seat, gathers = _among_three(
        lambda client, name: packed(forged) if client == 2 else Reply({"is_complete": False}), monkeypatch
    )
    with pytest.raises(PeerTimeoutError, match=r"site b \(client 1\), site c \(client 2\) has not come"):
        gathers.gather("mean", b"of a", 3)
    assert ("kept", 1) in {(name, client) for client, name, _ in seat.asked}
    gathers._slots[3, 0].payloads[1] = b"of b"
    gathers._next = (3, 0)
    text = (
        r"site c \(client 2\) says that it has left it with another value of site b \(client 1\) than that site's own"
    )
    with pytest.raises(ProtocolError, match=rf"collective 0 of round 3: {text}"):
        gathers.gather("mean", b"of a", 3)


def test_those_that_have_left_must_have_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    said = {1: KEPT, 2: {**KEPT, 1: b"forged"}}
    _, gathers = _among_three(lambda client, name: packed(said[client]), monkeypatch)
    with pytest.raises(ProtocolError, match=r"site b \(client 1\) and site c \(client 2\) say .* different results"):
        gathers.gather("mean", b"of a", 3)
    said[2] = KEPT
    gathers._next = (3, 0)
    assert gathers.gather("mean", b"of a", 3) == KEPT


@pytest.mark.parametrize("result", [{0: b"of a", 2: b"of c"}, {**KEPT, 7: b"of nobody"}])
def test_a_result_has_the_members_of_one_generation(result: Gathered, monkeypatch: pytest.MonkeyPatch) -> None:
    _, gathers = _among_three(lambda client, name: packed(result), monkeypatch)
    with pytest.raises(PeerTimeoutError, match=r"site b \(client 1\), site c \(client 2\) has not come"):
        gathers.gather("mean", b"of a", 3)


def test_a_result_of_the_generation_before_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Site d was lost after its payload had come, and b and c have left with it."""
    seat, gathers = _among_three(lambda client, name: packed({**KEPT, 3: b"of d"}), monkeypatch)
    four = Record(0, (0, 1, 2, 3), (0, 1, 2, 3), (0, 1, 2, 3), 0, sites={**SITES, 3: "d"})
    seat.membership.log = MembershipLog((four, Record(1, (0, 1, 2), (), (0, 1, 2), 4, sites=four.sites)))
    assert gathers.gather("mean", b"of a", 3) == {**KEPT, 3: b"of d"}


def test_a_hub_that_does_not_answer_is_not_spoken_for_with_another_value_of_this_site(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = {**KEPT, 1: b"forged"}

    def answer(client: int, name: str) -> Reply:
        if client == 0:
            raise UnreachableError("site a has gone", "refused")
        return packed(said)

    _among_three(answer, monkeypatch)
    other = Gathers(LoneSeat("b", THREE, answer), 1.0, 1.0)
    with pytest.raises(ProtocolError, match=r"site c \(client 2\) says .* another value of site b \(client 1\)"):
        other.gather("mean", b"of b", 3)
    said[1] = b"of b"
    assert other.gather("mean", b"of b", 3) == KEPT
