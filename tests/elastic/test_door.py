"""Guests get client ids that no other site has, whichever members let them in."""

from __future__ import annotations

import threading
from typing import Any

from lightning_parablock.desk.message import Identity
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.door import Door
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
