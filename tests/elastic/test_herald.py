"""What a site tells the others behind everything else: backups of server state under a cap."""

from __future__ import annotations

import math
import threading
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from lightning_parablock.desk.message import Reply
from lightning_parablock.elastic.herald import Herald, backup_pieces
from lightning_parablock.elastic.shard import Backup
from lightning_parablock.errors import MembershipError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.server.shard import StatePiece
from tests.elastic.seats import THREE, LoneSeat

_LIMIT_S = 30.0


class _Seat:
    """Notes what is asked of whom."""

    def __init__(self) -> None:
        self.log, self.membership, self.client = MembershipLog(), SimpleNamespace(generation=0), 0
        self.asked: list[tuple[int, str, Any, bytes]] = []
        self.changed = threading.Condition()

    def ask(self, client: int, name: str, said: Any, body: bytes, limit_s: float, pace: Any) -> None:
        with self.changed:
            self.asked.append((client, name, said, body))
            self.changed.notify_all()

    def await_asked(self, n: int) -> None:
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.asked) >= n, _LIMIT_S)


def _backup(block: int, version: int, generation: int = 0) -> Backup:
    piece = StatePiece(block, "velocity", 3, torch.full((5,), float(version)))
    return Backup(block, 0, ((version, block), generation), lambda: [piece])


def test_backups_wait_for_their_share_and_the_newest_of_a_block_is_sent() -> None:
    seat, budget = _Seat(), [0.0]
    herald = Herald(seat, lambda: budget[0])  # type: ignore[arg-type]
    for version in range(3):
        for block in range(2):
            herald.note_backup(1, _backup(block, version))
    herald.start()
    assert not seat.asked and herald.backup_bytes == 0
    budget[0] = 1.0  # enough to begin one, and no other
    seat.await_asked(1)
    budget[0] = 21.0
    seat.await_asked(2)
    herald.close(_LIMIT_S)
    assert herald.backup_bytes == 40
    for block, (client, name, said, body) in enumerate(seat.asked):
        (piece,) = backup_pieces(said, memoryview(body))
        assert (client, name, said["label"]) == (1, "backup", ((2, block), 0))
        assert (piece.block, piece.name, piece.first) == (block, "velocity", 3)
        assert torch.equal(piece.values, torch.full((5,), 2.0))


def test_backups_of_a_generation_that_has_ended_do_not_leave_before_those_of_the_next_one() -> None:
    seat = _Seat()
    herald = Herald(seat, lambda: 1.0)  # type: ignore[arg-type]
    for block in range(3):
        herald.note_backup(1, _backup(block, 0))
    for block in range(2):  # client 1 is lost
        herald.note_backup(2, _backup(block, 0, generation=1))
    herald.start()
    seat.await_asked(1)
    herald.close(_LIMIT_S)
    assert [(client, said["label"]) for client, _, said, _ in seat.asked] == [(2, ((0, 0), 1))]
    assert herald.backup_bytes == 20


def test_server_state_that_cannot_be_read_does_not_keep_the_others_from_hearing_what_has_landed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    said = threading.Event()

    def answer(client: int, name: str) -> Reply:
        if client == 2:
            said.set()
        return Reply({})

    def read() -> list[StatePiece]:
        read_once.set()
        raise RuntimeError("the device is gone")

    read_once = threading.Event()
    seat = LoneSeat("a", THREE, answer)
    herald = Herald(seat, lambda: math.inf)
    herald.note_backup(1, Backup(4, 0, ((3, 4), 0), read))
    herald.start()
    assert read_once.wait(60)
    herald.note_landed((3, 4))
    assert said.wait(60)
    herald.close(60)
    assert [(client, name, said["key"]) for client, name, said in seat.asked] == [
        (1, "landed", (3, 4)),
        (2, "landed", (3, 4)),
    ]
    assert seat.error is None
    assert "round 3, block 4: site b (client 1)" in caplog.text


def test_a_herald_that_cannot_speak_any_more_ends_the_sites_part() -> None:
    def answer(client: int, name: str) -> Reply:
        raise MemoryError

    seat = LoneSeat("a", THREE, answer)
    herald = Herald(seat, lambda: math.inf)
    herald.note_landed((3, 4))
    herald.start()
    with seat.changed:
        assert seat.changed.wait_for(lambda: seat.error is not None, 60)
    assert isinstance(seat.error, MembershipError)
    herald.close(60)
