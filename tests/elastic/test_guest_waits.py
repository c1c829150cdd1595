"""A guest waits with limits, says how far it is, and advises what to do where it does not get in."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Mapping

import pytest
import torch
from torch import Tensor

from lightning_parablock.elastic.fetching import Look
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import PeerTimeoutError
from tests.elastic.test_fetching import BLOCKS, Ahead, SlowLink, guest

STEP_S = 20.0


class Clock:
    """A clock that only transfers and pauses advance."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seat: Seat) -> None:
        self.now_s = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now_s)

        def wait_for(is_so: Callable[[], bool], limit_s: float) -> bool:
            self.advance()
            return is_so()

        monkeypatch.setattr(seat.changed, "wait_for", wait_for)

    def advance(self) -> None:
        """One step."""
        self.now_s += STEP_S


class Link(SlowLink):
    """A block takes a number of rounds on its way."""

    def __init__(self, seat: Seat, clock: Clock, rounds: int) -> None:
        super().__init__(seat, Ahead())
        self.clock, self.rounds = clock, rounds

    def _pull(self, address: str, name: str, said: Mapping[str, object], look: Look) -> Tensor:
        for _ in range(2):
            self.clock.advance()
            look()
        for _ in range(self.rounds):
            self.round += 1
            self.keys[self.round % BLOCKS] = (self.round, self.round % BLOCKS)
        return torch.zeros(1)


def said_by(link: Link, caplog: pytest.LogCaptureFixture) -> tuple[list[str], str]:
    """What a guest says until it gives up, and with which error it does."""
    with caplog.at_level(logging.WARNING), pytest.raises(PeerTimeoutError) as caught:
        link.follow(lambda: False)
    return [record.getMessage() for record in caplog.records], str(caught.value)


def test_a_guest_whose_link_is_too_slow_says_so_and_ends_with_advice(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seat = guest(3)
    said, error = said_by(Link(seat, Clock(monkeypatch, seat), rounds=2), caplog)
    assert not seat.is_ready
    here = r"site guest: \d of 4 blocks are here, at most one round old, as all must be"
    assert re.fullmatch(f"parablock: {here}; 40 s so far", said[0]), "while the first blocks come"
    slow = "the run changes blocks faster than this link brings them"
    assert re.fullmatch(rf"parablock: {here}, and no more for \d+ s: {slow}, if that continues; \d+ s so far", said[-1])
    assert re.fullmatch(
        rf"{here}, and no more for straggler_timeout_s=3600 s: {slow}; give the site a faster link, or the run more "
        "local_steps",
        error,
    )


def test_a_ready_guest_that_is_not_admitted_says_so_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seat = guest(3)
    said, error = said_by(Link(seat, Clock(monkeypatch, seat), rounds=0), caplog)
    assert seat.is_ready
    ready = "site guest is ready to be admitted (admit_every_rounds=1)"
    assert said[-1].startswith(f"parablock: {ready}, and has waited ") and said[-1].endswith(" s of at most 10800 s")
    assert error.startswith(f"{ready}, and the members have not admitted it within 10800 s; their logs say why")


def test_without_a_member_the_limit_is_that_of_coming_back(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seat = guest(3, members=0)
    said, error = said_by(Link(seat, Clock(monkeypatch, seat), rounds=0), caplog)
    nobody = r"\(the lighthouse names no member of the run\)"
    assert re.fullmatch(rf"parablock: has waited 40 s of at most 100 s: no member sends the model {nobody}", said[0])
    assert re.fullmatch(
        rf"no member has sent the model for rejoin_timeout_s=100 s {nobody}: has the run ended\? are the ports of its "
        r"sites open\?",
        error,
    )
