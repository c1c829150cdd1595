"""Sites in threads of one process, which see each other through shared memory in place of desks."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.elastic.journal import Journal
from lightning_parablock.elastic.view import Admission, Entry, HeldCheckpoint
from lightning_parablock.errors import PeerLostError, ProtocolError
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Transport
from tests.support.engine import loopback

LIMIT_S = 60.0


def enter(patch: pytest.MonkeyPatch, site: FakeSite) -> None:
    """Let strategies with a lighthouse take part as this site."""
    patch.setattr("lightning_parablock.strategy.elastic_ranks.open_site", lambda settings, name, folder, links: site)


def elastic_strategy(site: str = "a", **options: Any) -> ParaBlockStrategy:
    """Of a site that can found a run alone; its module has two layers, each of them a block."""
    two_layers = {"blocks": [r"layers\.0\.", r"layers\.1\."], "delay_steps": 0, "seed": 3}
    return ParaBlockStrategy(**{**two_layers, "lighthouse": "hub:1", "min_clients": 1, "site": site, **options})


@dataclass
class Board:
    """What the sites of one run share.

    Attributes:
        names: Site of each client.
        log: The membership log of the run.
        entry_of: How a site that is no founder, by its client id, comes in.
    """

    names: dict[int, str]
    log: MembershipLog = field(default_factory=MembershipLog)
    agreed: bytes = b""
    round_starts: dict[int, bytes] = field(default_factory=dict[int, bytes])
    admitted_at: int = -1
    first_round: int = 0
    changed: threading.Condition = field(default_factory=threading.Condition)
    slots: dict[int, dict[str, Any]] = field(default_factory=dict[int, dict[str, Any]])

    def __post_init__(self) -> None:
        if not self.log.records:
            members = tuple(sorted(self.names))
            self.log = MembershipLog((Record(0, members, (), members, 0, sites=dict(self.names)),))

    def regroup(self, members: tuple[int, ...], first_round: int, joiners: tuple[int, ...] = ()) -> None:
        """Open the next generation."""
        with self.changed:
            newest = self.log.newest
            record = Record(newest.generation + 1, members, joiners, members, first_round, sites=dict(self.names))
            self.log = self.log.and_then(record)
            self.changed.notify_all()

    def wait(self, is_true: Callable[[], bool], what: str) -> None:
        """With :attr:`changed` held."""
        if not self.changed.wait_for(is_true, LIMIT_S):
            raise PeerLostError(f"no site came: {what}")


class FakeSite:
    """One site; see :class:`lightning_parablock.elastic.view.SiteView`."""

    def __init__(self, board: Board, client: int, *, is_founder: bool = True) -> None:
        self.board, self.client, self.is_founder = board, client, is_founder
        self.run_id, self.number = "run", 0
        self.journal = Journal(board.names.get(client, str(client)))
        self.facts: Mapping[str, str] = {}
        self.checkpoint: HeldCheckpoint | None = None
        self.ancestors: tuple[str, ...] = ()
        self.has_left = self.is_closed = self.is_draining = self.has_finished = False
        self.gathered: list[tuple[str, int]] = []

    @property
    def log(self) -> MembershipLog:
        return self.board.log

    def enter(self, facts: Mapping[str, str], checkpoint: HeldCheckpoint | None = None) -> Entry:
        self.facts, self.checkpoint = facts, checkpoint
        first = self.board.first_round if checkpoint is None else checkpoint.round
        if self.is_founder:
            return Entry(True, self.client, self.board.names, first)
        with self.board.changed:
            self.board.wait(lambda: bool(self.board.agreed), "what the founders agreed on")
        return Entry(False, self.client, self.board.names, first, self.board.agreed)

    def present(self, round_index: int) -> tuple[int, ...]:
        return self.log.present(round_index)

    def gather(self, what: str, payload: bytes, round_index: int) -> dict[int, bytes]:
        board = self.board
        with board.changed:
            slot = board.slots.setdefault(self.number, {"what": what, "round": round_index, "payloads": {}})
            if (slot["what"], slot["round"]) != (what, round_index):
                slot["result"] = None
                board.changed.notify_all()
            slot["payloads"][self.client] = payload
            board.changed.notify_all()
            board.wait(lambda: "result" in slot or self._completes(slot), what)
            board.changed.notify_all()
            if slot["result"] is None:
                raise ProtocolError(
                    f"collective {self.number}: {what!r} in round {round_index}, others in {slot['what']!r}"
                )
            self.number += 1
            self.gathered.append((what, round_index))
            return slot["result"]

    def _completes(self, slot: dict[str, Any]) -> bool:
        clients = self.log.present(slot["round"])
        if all(client in slot["payloads"] for client in clients):
            slot["result"] = {client: slot["payloads"][client] for client in clients}
        return "result" in slot

    def keep_agreed(self, record: bytes) -> None:
        with self.board.changed:
            self.board.agreed = record
            self.board.changed.notify_all()

    def keep_round_start(self, round_index: int, state: bytes) -> None:
        with self.board.changed:
            self.board.round_starts[round_index] = state
            self.board.changed.notify_all()

    def open_rounds(
        self, flat: FlatBlocks, settings: Settings, schedule: Schedule, device: torch.device, masks: Any = None
    ) -> Transport:
        return loopback(flat, settings.server_optimizer, settings.compression)

    def begin_engine(self, engine: RoundEngine, round_index: int) -> None:
        engine.begin_at(round_index)

    def drain(self) -> None:
        self.is_draining = True

    def finish(self, round_index: int) -> None:
        self.has_finished = True

    def await_admission(self) -> Admission:
        with self.board.changed:
            self.board.wait(lambda: self.board.admitted_at in self.board.round_starts, "the donor's round")
            return Admission(self.board.admitted_at, self.board.round_starts[self.board.admitted_at])

    def leave(self) -> bool:
        self.has_left = True
        return True

    def close(self) -> None:
        self.is_closed = True


def together(works: list[Callable[[], Any]]) -> list[Any]:
    """The results of works that run at the same time; raises the first error."""
    results: list[Any] = [None] * len(works)
    errors: list[BaseException] = []

    def run(index: int) -> None:
        try:
            results[index] = works[index]()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(index,), daemon=True) for index in range(len(works))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
        assert not thread.is_alive()
    if errors:
        raise errors[0]
    return results
