"""What a site fetches from others: W while it is a guest, and what a decision says that it lacks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol

from torch import Tensor

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.tensors import pull_tensor
from lightning_parablock.elastic.giving import source_as_json
from lightning_parablock.elastic.guest_waits import GuestWaits
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import ProtocolError, RefusedError, UnreachableError
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import Record, as_key
from lightning_parablock.regroup.report import Decision, Source
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.system.reading import reading
from lightning_parablock.transport.base import Transport

_PAUSE_S = 0.2
_ANSWER_S = 10.0
_SILENT_S = 30.0

Look = Callable[[], None]
_Held = dict[int, tuple[Key, Record]]
"""Of each block the exchange whose W a guest holds, and the generation that was open at the giver."""


class Connect(Protocol):
    """Connects the members of a generation; all of them do so at once."""

    def __call__(self, decision: Decision, store: str, look: Look) -> Transport:
        """Returns what carries the exchanges of the generation."""
        ...


class Fetcher:
    """Brings a site what it lacks.

    Args:
        seat: State of this site.
        transport: Its exchanges.
        connect: See :class:`Connect`.
    """

    def __init__(self, seat: Seat, transport: ElasticTransport, connect: Connect) -> None:
        self._seat, self._transport, self._connect = seat, transport, connect

    def stage(self, decision: Decision, look: Look) -> None:
        """Pull what is missing, and make everything ready for the new generation."""
        transport = self._transport
        transport.client = self._seat.client_in(decision.log)
        commits = {key: self._from_donor(decision, "commit", key, look) for key in transport.lacking(decision)}
        scales = {key: self._from_donor(decision, "scale", key, look) for key in transport.scales_wanted(decision)}
        state = [piece for source in transport.needed_state(decision) for piece in self._state(decision, source, look)]
        look()
        transport.stage(decision, commits, state, scales)

    def connect(self, decision: Decision, store: str, look: Look) -> Transport:
        """Connect the members of the staged generation."""
        return self._connect(decision, store, look)

    def follow(self, is_enough: Callable[[], bool]) -> None:
        """As a guest: take W of all blocks ahead, then of those that have changed since, until ``is_enough``.

        The site lets itself be admitted as soon as it is no more than one round behind.

        Raises:
            PeerTimeoutError: no member gave anything for ``rejoin_timeout_s``, or see :meth:`GuestWaits.look`.
        """
        seat, held, waits = self._seat, _Held(), GuestWaits(self._seat)
        while not is_enough():
            waits.look()
            try:
                is_done = self._catch_up(held, waits)
                waits.note_given()
                if waits.is_ready:
                    with seat.changed:
                        seat.is_ready = True
            except (UnreachableError, RefusedError, ProtocolError) as error:  # the donor was lost, or has moved on
                waits.note_failure(error)
                is_done = True
            if is_done:
                with seat.changed:
                    seat.changed.wait_for(is_enough, _PAUSE_S)

    def _catch_up(self, held: _Held, waits: GuestWaits) -> bool:
        """Take one block, the newest of those that are lacking: it stays the newest of its block for longest.

        On a link on which a block takes a round, any other order would bring blocks that are outdated on arrival.

        Returns:
            Whether nothing is lacking.
        """
        donor, lacking, record = self._lacking(held, waits)
        if lacking:
            key = max(lacking)
            value = self._pull(donor, "commit", {"key": key}, waits.look)
            self._transport.take_ahead(key, value, record)
            held[key[1]] = key, record
            _, lacking, _ = self._lacking(held, waits)
        return not lacking

    def _lacking(self, held: _Held, waits: GuestWaits) -> tuple[str, list[Key], Record]:
        """A member's desk, the exchanges whose W it has and this guest lacks, and the generation that is open there.

        Where a block of an older round than the newest one is lacking, the guest is not close enough to be admitted.
        """
        donor = self._donor()
        landed, keys, record = self._newest(donor)
        lacking = [key for key in keys if not _is_held(held, key, record)]
        far = [key for key in lacking if key[1] not in held or key[0] < landed[0]]
        waits.note_close(len(keys) - len(far), len(keys))
        return donor, lacking, record

    def _newest(self, donor: str) -> tuple[Key, list[Key], Record]:
        said = self._ask(donor, "newest", {}, self._seat.check).said
        with reading(f"the answer of {donor} to 'newest'"):
            return as_key(said["landed"]), [as_key(key) for key in said["keys"]], Record.from_json(said["record"])

    def _state(self, decision: Decision, source: Source, look: Look) -> list[StatePiece]:
        assert source.holder is not None
        address, said = self._address(decision, source.holder), {"source": source_as_json(source)}
        reply = self._ask(address, "state", said, look)
        with reading(f"the answer of {address} to 'state'"):
            names = [(int(block), str(name), int(first)) for block, name, first in reply.said["pieces"]]
        return [
            StatePiece(*name, self._pull(address, "piece", {**said, "index": i}, look)) for i, name in enumerate(names)
        ]

    def _from_donor(self, decision: Decision, name: str, key: Key, look: Look) -> Tensor:
        assert decision.donor is not None
        return self._pull(self._address(decision, decision.donor), name, {"key": key}, look)

    def _ask(self, address: str, name: str, said: Mapping[str, object], look: Look) -> Reply:
        return self._seat.call(address, name, said, _ANSWER_S, look)

    def _pull(self, address: str, name: str, said: Mapping[str, object], look: Look) -> Tensor:
        return pull_tensor(address, name, said, _SILENT_S, caller=self._seat.identity, look=look)

    def _address(self, decision: Decision, client: int) -> str:
        return self._seat.address_of(decision.log.newest.sites[client])

    def _donor(self) -> str:
        """Desk of the member of the newest generation that gives: guests take turns, since each fills a link."""
        members = [one for one in self._seat.candidates if one.opened >= 0 and not one.is_leaving]
        if not members:
            raise UnreachableError("the lighthouse names no member of the run", "refused")
        newest = max(one.opened for one in members)
        able = sorted((one for one in members if one.opened == newest), key=lambda one: one.client)
        return able[self._seat.client % len(able)].desk


def _is_held(held: _Held, key: Key, newest: Record) -> bool:
    """Whether a guest holds W as of an exchange, and the newest generation has not redone it."""
    mine, record = held.get(key[1], (None, None))
    return mine == key and (record == newest or key <= newest.kept or key[0] < 0)
