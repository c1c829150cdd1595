"""An exchange has failed although no member is lost: when the members connect again, and for how long they try."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_parablock.elastic.opening import _note_trouble
from lightning_parablock.elastic.seat import SiteOptions
from lightning_parablock.elastic.site import Site
from lightning_parablock.errors import (
    ArbiterError,
    CallOrderError,
    ConfigurationError,
    ParaBlockError,
    PeerLostError,
    PeerTimeoutError,
    ProtocolError,
    SecureSumError,
    TooFewSitesError,
)
from lightning_parablock.regroup.log import MembershipLog, Record
from tests.support.local_arbiter import LocalLighthouse

RECORD = Record(3, (0, 1), (), (0, 1), 5, sites={0: "a", 1: "b"})


class _Timer:
    """One that a test lets run out."""

    due: list[_Timer]
    daemon = False

    def __init__(self, after_s: float, work: Callable[..., None], args: tuple[Any, ...]) -> None:
        self.after_s, self.run_out = after_s, lambda: work(*args)

    def start(self) -> None:
        self.due.append(self)


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[_Timer]:
    _Timer.due = []
    monkeypatch.setattr(threading, "Timer", _Timer)
    return _Timer.due


@pytest.fixture
def site() -> Iterator[Site]:
    """A member of generation 3, whose watcher the test speaks for."""
    options = SiteOptions("a", "hub:1", 2, 60.0, 1, 5.0, "star", False)
    made = Site(options, LocalLighthouse().arbiter(), "127.0.0.1")
    made.seat.membership.log, made.seat.membership.sealed, made.seat.in_rounds = MembershipLog((RECORD,)), 3, True
    made._watcher.close = lambda limit_s: None  # type: ignore[method-assign]  # it has not begun
    yield made
    made.close()


def test_the_request_to_connect_again_outlasts_a_lighthouse_that_is_away(site: Site, timers: list[_Timer]) -> None:
    site._watcher.away = ArbiterError("the lighthouse is away")
    site.note_trouble(RuntimeError("a chunk is lost"))
    for _ in range(3):
        assert [timer.after_s for timer in timers] == [10.0]
        timers.pop().run_out()
        assert not site.seat.membership.is_sealed
    site._watcher.away = None
    timers.pop().run_out()
    assert site.seat.membership.sealed == 4 and not timers


def test_a_site_that_is_closed_asks_for_nothing_more(site: Site, timers: list[_Timer]) -> None:
    site._watcher.away = ArbiterError("the lighthouse is away")
    site.note_trouble(RuntimeError("a chunk is lost"))
    site.close()
    timers.pop().run_out()
    assert not timers


@pytest.mark.parametrize(
    "error", [PeerLostError("site b"), PeerTimeoutError("site b"), ProtocolError("a chunk is damaged")]
)
def test_where_a_peer_or_a_connection_is_to_blame_the_members_connect_again(
    site: Site, timers: list[_Timer], error: Exception
) -> None:
    _note_trouble(site, error)
    assert site.seat.error is None and len(timers) == 1


@pytest.mark.parametrize(
    "error",
    [
        ConfigurationError("submissions.json cannot be written: no space left"),
        SecureSumError("the clients cannot have told this"),
        TooFewSitesError("of only 2 sites"),
        CallOrderError("before another one"),
    ],
)
def test_what_has_failed_here_ends_this_site(site: Site, timers: list[_Timer], error: ParaBlockError) -> None:
    _note_trouble(site, error)
    assert site.seat.error is error and not timers


def test_an_error_without_a_name_ends_this_site_with_one(site: Site, timers: list[_Timer]) -> None:
    _note_trouble(site, KeyError((3, 0)))
    assert str(site.seat.error) == "an exchange has failed at this site: KeyError: (3, 0)" and not timers
