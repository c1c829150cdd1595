"""What a guest is told at the door, and that it gets a client id that no other site has, whoever lets it in."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from lightning_parablock.desk.message import Identity
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.door import Door
from lightning_parablock.elastic.site import Site
from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.site_kit.version_fact import ADVICE, VERSION
from lightning_parablock.system.limited_wait import LimitedWait
from tests.elastic.seats import THREE, LoneSeat


def enters(door: Door, site: str) -> Any:
    """The client id that the door gives."""
    said = {"site": site, "facts": {}}
    return door.answer_enter(Call(said, memoryview(b""), Identity("", site), 1.0, 0.0, threading.Event())).said[
        "client"
    ]


def test_a_guest_keeps_its_client_id_when_the_member_that_let_it_in_is_lost() -> None:
    seat = LoneSeat("b", THREE)
    door = Door(seat)
    door.open(b"agreed")
    seat.note_list((seat.me(), Candidate("x", "1", "x:1", run="run", client=3)))  # site a has let it in, and is lost
    assert [enters(door, site) for site in ("y", "z", "y", "x", "c")] == [4, 5, 4, 3, 2]


class _Listing:
    """An arbiter whose list is a member of the run, and this site."""

    def __init__(self, member: Callable[[], Candidate]) -> None:
        self._member = member

    def ask(self, me: Candidate, limit_s: float) -> tuple[Candidate, ...]:
        return (self._member(), me)

    def close(self) -> None:
        pass


def site_of(name: str, member: Callable[[], Candidate], rejoin_timeout_s: float) -> Site:
    """A site that sees a member of the run."""
    options = replace(LoneSeat(name, THREE).options, min_clients=2, rejoin_timeout_s=rejoin_timeout_s)
    site = Site(options, _Listing(member), "127.0.0.1")
    site.seat.note_list((member(),))
    return site


@pytest.fixture
def hub() -> Iterator[Site]:
    """Site a, a founder."""
    seat = LoneSeat("a", THREE)
    site = site_of("a", seat.me, 60.0)
    site.seat.membership.log, site.seat.run = THREE, "run"
    site.seat.facts = {"torch": "2.13.0", "local_steps": "4", "delay_steps": "1"}
    yield site
    site.desk.close()  # it has not entered, and asks no arbiter


@pytest.fixture
def guests() -> Iterator[list[Site]]:
    """Sites to be closed."""
    made = list[Site]()
    yield made
    for site in made:
        site.close()


def begin(hub: Site) -> None:
    """The first round begins."""
    hub.keep_agreed(b"agreed")
    hub.seat.in_rounds = True


def test_a_site_waits_without_a_limit_of_its_own_while_the_founders_are_still_setting_up(
    hub: Site, guests: list[Site], monkeypatch: pytest.MonkeyPatch
) -> None:
    guests.append(site_of("d", hub.seat.me, rejoin_timeout_s=1e-3))
    said = set[str]()

    def report(wait: LimitedWait, what: Callable[[], str]) -> None:
        said.add(what())

    monkeypatch.setattr(LimitedWait, "report", report)
    threading.Timer(0.5, begin, (hub,)).start()
    entry = guests[0].enter(hub.seat.facts)
    assert not entry.is_founder and entry.agreed == b"agreed"
    assert said == {"the run of a to begin its first round: its sites are still setting up, and this one joins then"}


def test_a_site_that_reaches_no_member_says_so(guests: list[Site]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    lost = replace(LoneSeat("a", THREE).me(), desk=f"127.0.0.1:{port}")
    guests.append(site_of("d", lambda: lost, rejoin_timeout_s=1e-3))
    expected = (
        rf"of waiting for site a at 127.0.0.1:{port} cannot be reached for 'enter': .*; open its ports to this site"
    )
    with pytest.raises(PeerTimeoutError, match=expected):
        guests[0].enter({})


def test_one_that_differs_is_told_what_it_has_and_what_the_run_has(hub: Site, guests: list[Site]) -> None:
    begin(hub)
    guests.append(site_of("d", hub.seat.me, rejoin_timeout_s=60.0))
    with pytest.raises(ConfigurationError) as caught:
        guests[0].enter({"torch": "2.12.0", "local_steps": "4"})
    assert str(caught.value) == (
        "site d cannot join the run: delay_steps is not set here and 1 in the run; torch is 2.12.0 here and 2.13.0 in "
        "the run; use the same versions and the same run.yaml as the other sites"
    )


def test_a_federation_file_that_is_not_the_runs_has_advice_of_its_own(hub: Site, guests: list[Site]) -> None:
    begin(hub)
    guests.append(site_of("d", hub.seat.me, rejoin_timeout_s=60.0))
    hub.seat.facts = {VERSION: "version 2"}
    with pytest.raises(ConfigurationError) as caught:
        guests[0].enter({VERSION: "version 1"})
    assert str(caught.value) == (
        f"site d cannot join the run: {VERSION} is version 1 here and version 2 in the run; {ADVICE[VERSION]}"
    )
