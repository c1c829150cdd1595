"""How long a collective waits for whom."""

from __future__ import annotations

import threading
from threading import Event
from typing import Any

import pytest

from lightning_parablock.desk.message import Identity, Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.gathers import Gathers
from lightning_parablock.errors import PeerTimeoutError, RefusedError
from lightning_parablock.regroup.log import MembershipLog, Record


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
