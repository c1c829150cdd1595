"""What a site says counts for itself: a desk believes nobody who speaks in the name of another one."""

from __future__ import annotations

import threading
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_parablock.desk.message import Identity
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.door import Door
from lightning_parablock.elastic.giving import Giver
from lightning_parablock.elastic.herald import backup_message
from lightning_parablock.elastic.shard import Backup
from lightning_parablock.elastic.site import Site
from lightning_parablock.errors import RefusedError
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.server.shard import StatePiece
from tests.elastic.seats import SITES, THREE, LoneSeat

JOINED = replace(Record(1, (0, 1, 2, 3), (3,), (0, 1, 2, 3), 4), sites={**SITES, 3: "d"})


def said_by(site: str, said: dict[str, Any], body: bytes = b"") -> Call:
    """A call of a site that waits for nothing."""
    return Call(said, memoryview(body), Identity("run", site, "1"), 0.0, 0.0, threading.Event())


class _Exchanges:
    """Notes what has been said of whom."""

    def __init__(self, log: MembershipLog, staged: MembershipLog | None = None) -> None:
        self.log, self.store = log, SimpleNamespace(n_blocks=2)
        self.staged = None if staged is None else SimpleNamespace(decision=SimpleNamespace(log=staged))
        self.noted: list[Any] = []

    def note_landed(self, client: int, key: Any, generation: int) -> None:
        self.noted.append(("landed", client, key))

    def take_backup(self, block: int, server: int, label: Any, pieces: Any) -> None:
        self.noted.append(("backup", server, label))


def _backup(server: int, block: int = 0, generation: int = 0) -> tuple[dict[str, Any], bytes]:
    piece = StatePiece(block, "momentum", 0, torch.zeros(3))
    return backup_message(Backup(block, server, ((1, block), generation), lambda: None), [piece])


def test_a_site_says_what_has_landed_there_and_not_what_has_landed_elsewhere() -> None:
    exchanges = _Exchanges(THREE)
    giver: Any = Giver(exchanges)  # type: ignore[arg-type]
    giver._landed(said_by("c", {"client": 2, "key": (5, 0), "generation": 0}))
    for site, client, text in (
        ("c", 1, "site 'c' is client 2, and cannot speak for client 1"),
        ("x", 1, "site 'x' has no client id"),
    ):
        with pytest.raises(RefusedError, match=text):
            giver._landed(said_by(site, {"client": client, "key": (5, 0), "generation": 0}))
    assert exchanges.noted == [("landed", 2, (5, 0))]


def test_a_server_has_its_own_state_kept_and_no_other_servers() -> None:
    exchanges = _Exchanges(THREE)
    giver: Any = Giver(exchanges)  # type: ignore[arg-type]
    giver._backup(said_by("c", *_backup(2)))
    with pytest.raises(RefusedError, match="site 'c' is client 2, and cannot speak for client 1"):
        giver._backup(said_by("c", *_backup(1)))
    for block, generation in ((2, 0), (-1, 0), (0, 9)):
        with pytest.raises(RefusedError, match=f"no block {block} of 2 with server state of generation {generation}"):
            giver._backup(said_by("c", *_backup(2, block, generation)))
    assert exchanges.noted == [("backup", 2, ((1, 0), 0))]


def test_a_joiner_is_known_by_the_generation_that_this_site_could_open() -> None:
    exchanges = _Exchanges(THREE, THREE.and_then(JOINED))
    giver: Any = Giver(exchanges)  # type: ignore[arg-type]
    giver._backup(said_by("d", *_backup(3, generation=1)))
    assert exchanges.noted == [("backup", 3, ((1, 0), 1))]


def test_a_guest_gets_the_client_id_of_its_own_site() -> None:
    door = Door(LoneSeat("b", THREE))
    door.open(b"agreed")
    with pytest.raises(RefusedError, match="site 'x' cannot ask for a client id for site 'c'"):
        door.answer_enter(said_by("x", {"site": "c", "facts": {}}))


@pytest.mark.parametrize(
    ("run", "in_rounds", "is_refused"), [("", True, True), ("", False, False), ("run", True, False)]
)
def test_who_does_not_know_the_run_is_refused_once_its_rounds_have_begun(
    run: str, in_rounds: bool, is_refused: bool
) -> None:
    seat = LoneSeat("b", THREE)
    seat.in_rounds = in_rounds
    site: Any = SimpleNamespace(_seat=seat)
    if is_refused:
        with pytest.raises(RefusedError, match=r"takes part in run run, and this call \('commit'\) is from no run"):
            Site._refuse_strangers(site, Identity(run, "c"), "commit")
    else:
        Site._refuse_strangers(site, Identity(run, "c"), "commit")
