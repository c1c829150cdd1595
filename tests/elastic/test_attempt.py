"""What a coordinator asks of whom in an attempt at a regroup, and what it says where that fails."""

from __future__ import annotations

import logging
import threading
import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic import attempt as attempts
from lightning_parablock.elastic.answers import Answers
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.attempt import Attempt
from lightning_parablock.elastic.roster import Roster
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import ParaBlockError, RefusedError, UnreachableError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.system import limited_wait
from tests.elastic.seats import SITES, THREE, LoneSeat


class Sites:
    """Members a, b and c of a run, and guests; their desks answer within this process."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **guests: int) -> None:
        self.seats: dict[str, Seat] = {site: LoneSeat(site, THREE) for site in SITES.values()}
        self.seats |= {site: LoneSeat(site, MembershipLog()) for site in guests}
        self.gone, self.slow, self.has_failed = set[str](), set[str](), threading.Event()
        self.asked: list[tuple[str, str]] = []
        incarnations = {client: self.seats[site].incarnation for client, site in SITES.items()}
        for site, seat in self.seats.items():
            seat.address = f"{site}:1"
            seat.incarnations, seat.asked_client = dict(incarnations), guests.get(site)
        self.taking = set[Candidate]()
        self._answers = {site: Answers(seat, lambda decision: None) for site, seat in self.seats.items()}
        monkeypatch.setattr(attempts, "call", self.call)

    @property
    def listed(self) -> tuple[Candidate, ...]:
        """What the lighthouse lists."""
        return tuple(seat.me() for site, seat in self.seats.items() if site not in self.gone)

    def call(self, address: str, name: str, said: dict[str, Any], **options: Any) -> Reply:
        """See :func:`lightning_parablock.desk.caller.call`."""
        site = address.partition(":")[0]
        self.asked.append((name, site))
        if site in self.slow:
            self.has_failed.wait(60.0)
            options["look"]()
        if site in self.gone:
            threading.Timer(0.1, self.has_failed.set).start()
            raise UnreachableError(f"{address} cannot be reached for {name!r}: timed out", "silent")
        asked: Any = SimpleNamespace(said=said, caller=options["caller"], remaining_s=5.0, reading=nullcontext)
        try:
            return getattr(self._answers[site], name)(asked)
        except ParaBlockError as error:
            raise RefusedError(f"{name!r} at {address}: {error}", type(error).__name__) from error

    def regroup(self, *sites: str) -> Attempt:
        """Site a coordinates an attempt with some sites, to its end."""
        self.seats["a"].note_list(self.listed)
        attempt = Attempt(self.seats["a"], [self.seats[site].me() for site in sites], is_founding=False)
        self.taking = attempt.taking
        attempt.start()
        attempt.join(60.0)
        return attempt

    def whom(self, name: str) -> list[str]:
        """The sites that were asked for something."""
        return sorted(site for asked, site in self.asked if asked == name)


def test_a_guest_that_is_refused_is_not_asked_to_open_and_the_others_have_opened(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sites = Sites(monkeypatch, d=1)  # the id of site b
    with caplog.at_level(logging.INFO):
        attempt = sites.regroup("a", "b", "c", "d")
    assert attempt.has_opened and "did not open" not in caplog.text
    assert sites.whom("open") == ["a", "b", "c"]
    assert "client id 1, which belongs to site 'b'" in str(sites.seats["d"].error)


def test_a_site_that_leaves_is_told_that_it_may_go(monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Sites(monkeypatch)
    sites.seats["c"].is_leaving = True
    assert sites.regroup("a", "b", "c").has_opened
    assert sites.whom("open") == ["a", "b", "c"] and sites.seats["c"].has_left


@pytest.mark.parametrize(
    ("what", "why"),
    [
        ("ended", "its process has ended, or no sign of life for 1 s"),
        ("started again", "its process was started again"),
        ("alive", "not all of the other sites reach it, although it is alive"),
    ],
)
def test_the_log_says_why_a_member_takes_no_part(what: str, why: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Sites(monkeypatch)
    if what == "ended":
        sites.gone.add("c")
    if what == "started again":
        sites.seats["c"] = replace_process(sites.seats["c"])
    assert sites.regroup("a", "b").has_opened
    assert sites.seats["a"].log.newest.gone == {2: f"lost: {why}"}


def replace_process(seat: Seat) -> Seat:
    """The seat of a newer process of the same site."""
    again = LoneSeat(seat.options.site, MembershipLog())
    again.incarnation, again.address = f"{seat.incarnation}, again", seat.address
    return again


def test_a_site_that_cannot_be_reached_is_named_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sites = Sites(monkeypatch)
    sites.gone.add("c")
    sites.slow.add("a")  # what it then hears is no reason of its own
    assert not sites.regroup("a", "b", "c").has_opened
    assert (
        "generation 1 with a, b, c did not open: site c at c:1 cannot be reached for 'prepare': timed out; if it runs, "
        "open its ports to site a; it is tried again"
    ) in caplog.text


def test_a_site_that_refuses_a_step_is_named(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    sites = Sites(monkeypatch)
    sites.seats["a"].note_list(sites.listed)
    attempt = Attempt(sites.seats["a"], sites.listed, is_founding=False)
    sites.seats["b"].membership.seal(7)
    attempt.start()
    attempt.join(60.0)
    assert not attempt.has_opened
    assert "did not open: site b: 'prepare' at b:1: site 'b' has sealed generation 7" in caplog.text


def trickling(sites: Sites, monkeypatch: pytest.MonkeyPatch, slow: str, steps: int) -> None:
    """A site answers so many times that it still takes what it lacks; each time 4 s pass."""
    now_s, real, left = [0.0], sites.call, [steps]
    monkeypatch.setattr(limited_wait.time, "monotonic", lambda: now_s[0])

    def call(address: str, name: str, said: dict[str, Any], **options: Any) -> Reply:
        if name != "decision" or address != f"{slow}:1" or not left[0]:
            return real(address, name, said, **options)
        while any(one.site != slow for one in sites.taking):
            time.sleep(0.01)
        left[0] -= 1
        now_s[0] += 4.0
        options["look"]()
        return Reply({"is_done": False})

    monkeypatch.setattr(attempts, "call", call)


def test_a_guest_that_takes_too_long_is_left_out_at_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sites = Sites(monkeypatch, d=3, e=4)
    roster, quarter_s = Roster(sites.seats["a"], lambda: 5), sites.seats["a"].options.rejoin_timeout_s / 4
    trickling(sites, monkeypatch, "d", 1000)
    attempt = sites.regroup("a", "b", "c", "d", "e")
    assert not attempt.has_opened and [one.site for one in attempt.slow] == ["d"]
    assert f"not all that a guest lacks has come to site d within {quarter_s:g} s" in caplog.text
    roster.note_end(attempt.participants, has_opened=False, slow=attempt.slow)
    assert "site d is not admitted for 60 s: the members continue without it (not all that a guest" in caplog.text
    ready = [replace(one, is_ready=one.site in "de") for one in sites.listed]
    assert [one.site for one in roster.next_members(ready)] == ["a", "b", "c", "e"]


@pytest.mark.parametrize("slow", ["b", "d"])
def test_members_and_guests_that_are_needed_may_take_longer(slow: str, monkeypatch: pytest.MonkeyPatch) -> None:
    sites = Sites(monkeypatch, d=3)
    if slow == "d":
        sites.seats["a"].options = replace(sites.seats["a"].options, min_clients=4)
    trickling(sites, monkeypatch, slow, 30)
    attempt = sites.regroup("a", "b", "c", "d")
    assert attempt.has_opened and not attempt.slow
