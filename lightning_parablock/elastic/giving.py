"""What a member's desk gives to sites that lack it: commits, W for joiners, and pieces of server state."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.desk.tensors import chunk_reply
from lightning_parablock.elastic.callers import refuse_other_client
from lightning_parablock.elastic.herald import backup_pieces
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import RefusedError
from lightning_parablock.regroup.log import MembershipLog, as_key
from lightning_parablock.regroup.report import Source
from lightning_parablock.system.reading import reading


class Giver:
    """Gives what has landed at this site.

    Args:
        transport: The exchanges of this site.
        pace: Called before bytes leave, with their number; sleeps where the site's rate is capped.
    """

    def __init__(self, transport: ElasticTransport, pace: Callable[[int], None] | None = None) -> None:
        self._transport, self._pace = transport, pace

    def register(self, desk: Desk) -> None:
        """Answer at the desk."""
        desk.answer("newest", self._newest)
        desk.answer("commit", self._commit)
        desk.answer("scale", self._scale)
        desk.answer("state", self._state)
        desk.answer("piece", self._piece)
        desk.answer("landed", self._landed)
        desk.answer("backup", self._backup)

    def _newest(self, call: Call) -> Reply:
        """Which exchange is the newest of each block, and of all, and the record of the generation that is open."""
        record, keys = self._transport.newest()
        return Reply({"landed": self._transport.store.landed, "keys": keys, "record": record.to_json()})

    def _commit(self, call: Call) -> Reply:
        """A part of W of a block after an exchange."""
        with call.reading():
            key = as_key(call.said["key"])
        return chunk_reply(call.said, self._transport.commit_of(key), str(key), self._pace)

    def _scale(self, call: Call) -> Reply:
        """A part of the scale of that version of a block."""
        with call.reading():
            key = as_key(call.said["key"])
        return chunk_reply(call.said, self._transport.scale_of(key), str(key), self._pace)

    def _state(self, call: Call) -> Reply:
        """Which tensors a piece of server state consists of."""
        pieces = self._transport.state_of(_source(call))
        return Reply({"pieces": [[piece.block, piece.name, piece.first] for piece in pieces]})

    def _piece(self, call: Call) -> Reply:
        """A part of one of them."""
        pieces = self._transport.state_of(_source(call))
        with call.reading():
            piece = pieces[int(call.said["index"])]
        return chunk_reply(call.said, piece.values, str(call.said["source"]), self._pace)

    def _landed(self, call: Call) -> Reply:
        """A member says what has landed there."""
        with call.reading():
            client, generation = int(call.said["client"]), int(call.said["generation"])
            key = as_key(call.said["key"])
        refuse_other_client(call, client, *self._logs())
        self._transport.note_landed(client, key, generation)
        return Reply({})

    def _backup(self, call: Call) -> Reply:
        """A server's state, to be kept in case it is lost."""
        with call.reading():
            key, generation = as_key(call.said["label"][0]), int(call.said["label"][1])
            block, server = int(call.said["block"]), int(call.said["server"])
        logs = self._logs()
        refuse_other_client(call, server, *logs)
        n_blocks, newest = self._transport.store.n_blocks, max(log.generation for log in logs)
        if not 0 <= block < n_blocks or generation > newest:
            raise RefusedError(
                f"there is no block {block} of {n_blocks} with server state of generation {generation}: the newest "
                f"that this site knows is {newest}",
                "not yet",
            )
        self._transport.take_backup(block, server, (key, generation), backup_pieces(call.said, call.body))
        return Reply({})

    def _logs(self) -> tuple[MembershipLog, ...]:
        """That of the open generation and, since others may have opened it already, of the one that is staged."""
        staged = self._transport.staged  # first: an opening between the two makes it the log
        return (self._transport.log,) if staged is None else (self._transport.log, staged.decision.log)


def source_as_json(source: Source) -> dict[str, Any]:
    """As plain values for JSON."""
    return {"block": source.block, "server": source.server, "holder": source.holder, "label": source.label}


def source_from(said: Any) -> Source:
    """What :func:`source_as_json` wrote.

    Raises:
        ProtocolError: it is something else, or names no version.
    """
    with reading("a piece of server state that is asked for"):
        key, generation = said["label"]
        return Source(
            int(said["block"]),
            int(said["server"]),
            None if said["holder"] is None else int(said["holder"]),
            (as_key(key), int(generation)),
        )


def _source(call: Call) -> Source:
    with call.reading():
        return source_from(call.said["source"])
