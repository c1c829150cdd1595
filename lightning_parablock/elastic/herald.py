"""Tells the other members what has landed here, and sends them the backups that they keep: behind everything else."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from lightning_parablock.desk.tensors import as_message, from_message
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.elastic.shard import Backup
from lightning_parablock.errors import MembershipError, ParaBlockError, ProtocolError
from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.system.reading import reading

log = logging.getLogger(__name__)

_ANSWER_S = 30.0
_WAKE_S = 0.5


class Herald:
    """A thread of a site that speaks to the other members; what it says may be late, and may be lost.

    Args:
        seat: State of this site.
        budget_bytes: Returns how many bytes of backups may have left so far: they must not slow down the exchange.
        pace: Called before each piece of a backup leaves, with its number of bytes; sleeps where the rate is capped.

    Attributes:
        backup_bytes: Bytes of the backups that have left.
    """

    def __init__(
        self, seat: Seat, budget_bytes: Callable[[], float], pace: Callable[[int], None] | None = None
    ) -> None:
        self._seat, self._budget_bytes, self._pace = seat, budget_bytes, pace or _at_once
        self.backup_bytes = 0
        self._changed = threading.Condition()
        self._landed: Key = BEFORE_ALL
        self._backups: dict[tuple[int, int], Backup] = {}
        self._is_closing = False
        self._thread = threading.Thread(target=self._run, name="parablock-herald", daemon=True)

    def start(self) -> None:
        """Begin to speak."""
        self._thread.start()

    def note_landed(self, key: Key) -> None:
        """An exchange has landed here; only the newest one is announced."""
        with self._changed:
            self._landed = max(self._landed, key)
            self._changed.notify_all()

    def note_backup(self, client: int, backup: Backup) -> None:
        """A version of this server's state is to be kept by another member; it takes the place of an older one.

        So does the first one of a generation of all those before it, which no member would keep any more.
        """
        with self._changed:
            for place in [p for p, waiting in self._backups.items() if waiting.label[1] < backup.label[1]]:
                del self._backups[place]
            self._backups.pop((client, backup.block), None)
            self._backups[client, backup.block] = backup
            self._changed.notify_all()

    def close(self, limit_s: float) -> None:
        """End the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        self._thread.join(limit_s)

    def _run(self) -> None:
        try:
            self._speak()
        except Exception as error:  # else the others would keep every W, and none of them this site's server state
            log.exception("parablock: the thread that tells the other members what has landed here has failed")
            self._seat.fail(MembershipError(f"this site cannot speak to the other members any more: {error!r}"))

    def _speak(self) -> None:
        said: Key = BEFORE_ALL
        while True:
            with self._changed:
                self._changed.wait_for(lambda said=said: self._has_news(said), _WAKE_S)
                if self._is_closing:
                    return
                landed, backup = self._landed, self._next_backup()
            if landed > said and self._tell_all(landed):
                said = landed
            if backup is not None:
                self._send(*backup)

    def _has_news(self, said: Key) -> bool:
        return self._is_closing or self._landed > said or (bool(self._backups) and self._may_send())

    def _may_send(self) -> bool:
        return self.backup_bytes < self._budget_bytes()

    def _next_backup(self) -> tuple[int, Backup] | None:
        """The one that has waited longest, where another may leave; the caller holds the lock."""
        if not self._backups or not self._may_send():
            return None
        client, block = next(iter(self._backups))
        return client, self._backups.pop((client, block))

    def _tell_all(self, landed: Key) -> bool:
        seat = self._seat
        if not seat.log.records:
            return False
        said = {"client": seat.client, "key": landed, "generation": seat.membership.generation}
        for client in seat.log.newest.members:
            if client != seat.client:
                self._try(client, "landed", said, b"")
        return True

    def _send(self, client: int, backup: Backup) -> None:
        try:
            pieces = backup.read()
        except Exception as error:  # of the device or the memory; the next version may be read again
            (round_index, _), _ = backup.label
            log.warning(
                "parablock: round %d, block %d: %s does not get a copy of this server's state, which cannot be read "
                "(%r); if this site is lost before the next copy, an older state takes its place",
                round_index,
                backup.block,
                self._seat.describe(client),
                error,
            )
            return
        if pieces is None:
            return
        said, body = backup_message(backup, pieces)
        self.backup_bytes += len(body)
        self._try(client, "backup", said, body)

    def _try(self, client: int, name: str, said: Mapping[str, object], body: bytes) -> None:
        try:
            self._seat.ask(client, name, said, body, _ANSWER_S, self._pace)
        except ParaBlockError as error:  # a member that is gone need not know; the arbiter says which are
            log.debug("parablock: %s to client %d: %s", name, client, error)


def backup_message(backup: Backup, pieces: Sequence[StatePiece]) -> tuple[dict[str, Any], bytes]:
    """A backup as JSON and bytes."""
    messages = [as_message(piece.values) for piece in pieces]
    said = {
        "block": backup.block,
        "server": backup.server,
        "label": backup.label,
        "pieces": [
            [piece.name, piece.first, about, len(body)] for piece, (about, body) in zip(pieces, messages, strict=True)
        ],
    }
    return said, b"".join(body for _, body in messages)


def backup_pieces(said: Mapping[str, Any], body: memoryview) -> list[StatePiece]:
    """The tensors of a backup that :func:`backup_message` wrote.

    Raises:
        ProtocolError: they do not fill the body, or are none.
    """
    pieces, at = list[StatePiece](), 0
    with reading("a copy of a server's state"):
        for name, first, about, n_bytes in said["pieces"]:
            values = from_message(about, body[at : at + int(n_bytes)])
            pieces.append(StatePiece(int(said["block"]), str(name), int(first), values))
            at += values.nbytes
    if at != len(body):
        raise ProtocolError(f"a copy of a server's state states {at} bytes, and has {len(body)}")
    return pieces


def _at_once(n_bytes: int) -> None:
    """No rate is capped."""
