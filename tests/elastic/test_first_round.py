"""A joiner waits for the round with which it starts for as long as a round may take."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest

from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.round_starts import RoundStarts
from lightning_parablock.errors import PeerTimeoutError
from lightning_parablock.regroup.log import MembershipLog, Record
from tests.elastic.seats import SITES, THREE, LoneSeat

ROUND_S = 1300.0
"""Longer than ``rejoin_timeout_s`` of the seat, shorter than its ``straggler_timeout_s``."""


@pytest.fixture
def now_s(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A clock that only pauses advance."""
    now_s = [0.0]

    def sleep(pause_s: float) -> None:
        now_s[0] += 100.0

    monkeypatch.setattr(time, "monotonic", lambda: now_s[0])
    monkeypatch.setattr(time, "sleep", sleep)
    return now_s


def joiner(now_s: list[float], begins_s: float, newest: Callable[[], MembershipLog] = lambda: THREE) -> LoneSeat:
    """The seat of site c, whose neighbours begin the next round at a given time."""

    def answer(client: int, name: str) -> Reply:
        seat.membership.log = newest()
        return Reply({"is_here": now_s[0] >= begins_s, "is_over": False}, b"it")

    seat = LoneSeat("c", THREE, answer)
    seat.note_list((Candidate("a", "1", "a:1", client=0, opened=0), Candidate("b", "1", "b:1", client=1, opened=0)))
    return seat


def test_a_round_may_take_longer_than_a_lost_site_has_to_come_back(now_s: list[float]) -> None:
    seat = joiner(now_s, ROUND_S)
    assert seat.options.rejoin_timeout_s < ROUND_S
    assert RoundStarts(seat).of_others(31) == b"it"


def test_the_limit_is_that_of_a_round_and_its_option_is_named(now_s: list[float]) -> None:
    expected = r"begun round 31 within 3600 s; raise straggler_timeout_s if a round takes longer"
    with pytest.raises(PeerTimeoutError, match=expected):
        RoundStarts(joiner(now_s, 1e9)).of_others(31)
    assert 3600.0 <= now_s[0] <= 3700.0


def test_each_opening_restarts_the_limit(now_s: list[float]) -> None:
    log = MembershipLog((*THREE.records, Record(1, (0, 1, 2), (), (0, 1, 2), 31, sites=SITES)))
    seat = joiner(now_s, 4000.0, lambda: log if now_s[0] >= 2000.0 else THREE)
    assert RoundStarts(seat).of_others(31) == b"it"
