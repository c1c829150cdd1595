"""Seats of sites that have no desk: what they ask of others a test answers."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any

from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic.seat import Seat, SiteOptions
from lightning_parablock.regroup.log import MembershipLog, Record

SITES = {0: "a", 1: "b", 2: "c"}
THREE = MembershipLog((Record(0, (0, 1, 2), (0, 1, 2), (0, 1, 2), 0, sites=SITES),))


class LoneSeat(Seat):
    """A seat whose calls end at ``answer``; :attr:`asked` has them in order, as (client, name, what was said)."""

    def __init__(
        self, site: str, log: MembershipLog, answer: Callable[[int, str], Reply] = lambda client, name: Reply({})
    ) -> None:
        super().__init__(
            SiteOptions(
                site,
                "here:1",
                min_clients=1,
                rejoin_timeout_s=60.0,
                admit_every_rounds=1,
                silence_s=1.0,
                topology="star",
                has_server_state=False,
            ),
            address="here:2",
            store_address="here:3",
        )
        self.membership.log, self.membership.sealed, self.in_rounds, self.run = log, log.generation, True, "run"
        self.asked: list[tuple[int, str, Mapping[str, Any]]] = []
        self._answer, self._asked_lock = answer, threading.Lock()

    def ask(
        self,
        client: int,
        name: str,
        said: Mapping[str, object],
        body: bytes,
        limit_s: float,
        pace: Callable[[int], None] | None = None,
    ) -> Reply:
        with self._asked_lock:
            self.asked.append((client, name, said))
        return self._answer(client, name)
