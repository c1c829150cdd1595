"""Collectives of the trainer that survive a change of members: numbered gathers of one payload per participant.

The trainer's collectives run on whichever members take part in the round, and are numbered within it. One of them, the
hub, collects the payloads: the lowest client id among the participants. A member that joined later would not know of
the collective. After a regroup those that still wait ask the new hub, with the same number. A member that has left a
collective with its result keeps that result, and the hub takes it from there, so all participants get the same result
(docs/method.md, "The rules", rule 13).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.callers import client_of_caller, refuse_other_client
from lightning_parablock.elastic.gathered import Gathered, Number, agreed, named, packed, unpacked
from lightning_parablock.errors import PeerTimeoutError, ProtocolError, RefusedError, UnreachableError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.system.limited_wait import LATE, LimitedWait

_POLL_S = 5.0
"""How long the hub holds a question that it cannot answer yet."""
_PAUSE_S = 0.1
_ASK_S = 0.5
"""How often the hub asks the others whether they have left a collective already."""
_KEPT = 8
_OTHER = "other collective"


class Neighbours(Protocol):
    """The other sites, as a collective sees them."""

    @property
    def client(self) -> int:
        """Own client id."""
        ...

    @property
    def log(self) -> MembershipLog:
        """The log up to the generation that is open here."""
        ...

    @property
    def is_apart(self) -> bool:
        """Whether the members are changing."""
        ...

    def ask(self, client: int, name: str, said: Mapping[str, object], body: bytes, limit_s: float) -> Reply:
        """Call another member's desk."""
        ...

    def check(self) -> None:
        """Raise the error that ends this site's part in the run, if there is one."""
        ...

    def describe(self, client: int) -> str:
        """A member in words, for messages."""
        ...


@dataclass
class _Slot:
    """What the hub has of one collective.

    Attributes:
        what: Names it.
        payloads: Those that have come, each from its own site.
        result: All payloads, once it is complete.
        fetched: Clients that have it.
        asked_s: When the others were asked last.
    """

    what: str
    payloads: Gathered = field(default_factory=Gathered)
    result: Gathered | None = None
    fetched: set[int] = field(default_factory=set[int])
    asked_s: float = 0.0


class Gathers:
    """One member's part in the collectives, and the hub's where this member is it.

    Args:
        site: The other sites.
        limit_s: Seconds after which a collective for which all members are there, and not all come, is an error.
        apart_limit_s: The same while the members are changing.
    """

    def __init__(self, site: Neighbours, limit_s: float, apart_limit_s: float) -> None:
        self._site, self._limit_s, self._apart_limit_s = site, limit_s, apart_limit_s
        self._changed = threading.Condition()
        self._slots: dict[Number, _Slot] = {}
        self._results: dict[Number, Gathered] = {}
        self._next: Number = (-1, 0)

    def gather(self, what: str, payload: bytes, round_index: int) -> Gathered:
        """The payload of every participant, by client id, the same on all of them; collective.

        Args:
            what: Names the collective; the same on all participants.
            payload: This member's.
            round_index: The running round: its members take part, as far as they are still members.

        Raises:
            PeerTimeoutError: the others did not come within the limit.
            ProtocolError: another member is in another collective.
        """
        if round_index != self._next[0]:
            self._next = (round_index, 0)
        number, stage = self._next, self._stage()
        wait = LimitedWait(self._limit_of(stage), reports=LATE)
        while True:
            self._site.check()
            result = self._ask_hub(number, what, payload)
            if result is not None:
                break
            before, stage = stage, self._stage()
            if stage != before:  # each regroup and each opening restarts the limit
                wait = LimitedWait(self._limit_of(stage), reports=LATE)
            if wait.is_over:
                option = "rejoin_timeout_s" if stage[1] else "straggler_timeout_s"
                raise PeerTimeoutError(
                    f"{named(number, what)}: {self._missing(number)} within {option}={wait.limit_s:g} s; raise it if "
                    "a site needs longer than that"
                )
            wait.report(lambda: f"{named(number, what)}: {self._missing(number)}")
        with self._changed:
            self._results[number] = result
            _forget_old(self._results, self._results)
            self._changed.notify_all()
        self._next = (number[0], number[1] + 1)
        return result

    def await_fetched(self, limit_s: float) -> None:
        """As the hub: wait until the others have the result of the last collective, or are gone."""
        number = (self._next[0], self._next[1] - 1)
        with self._changed:
            slot = self._slots.get(number)
            if slot is not None:
                self._changed.wait_for(
                    lambda: slot.fetched >= set(self._present(number)) - {self._site.client}, timeout=limit_s
                )

    def _stage(self) -> tuple[int, bool]:
        return self._site.log.generation, self._site.is_apart

    def _limit_of(self, stage: tuple[int, bool]) -> float:
        return self._apart_limit_s if stage[1] else self._limit_s

    def _hub(self, number: Number) -> int:
        return min(self._present(number))

    def _ask_hub(self, number: Number, what: str, payload: bytes) -> Gathered | None:
        me = self._site.client
        own = self._known(number)
        if own is not None:
            return own
        hub = self._hub(number)
        said = {"number": number, "what": what, "client": me}
        if hub == me:
            return self._collect(number, what, me, payload)
        try:
            reply = self._site.ask(hub, "gather", said, payload, _POLL_S + 5.0)
        except UnreachableError:  # a regroup will name another hub, or the limit ends the wait
            time.sleep(_PAUSE_S)
            return self._kept_elsewhere(number, payload)
        except RefusedError as refusal:
            if refusal.kind == _OTHER:
                raise ProtocolError(str(refusal)) from refusal
            time.sleep(_PAUSE_S)  # no generation is open there yet
            return None
        return unpacked(reply, self._site.describe(hub))

    def _missing(self, number: Number) -> str:
        slot = self._slots.get(number)
        if slot is None:
            return f"no answer from {self._site.describe(self._hub(number))}, which collects"
        absent = [c for c in self._present(number) if c not in slot.payloads]
        return f"{', '.join(map(self._site.describe, absent)) or 'no site'} has not come"

    # --- the hub's part -----------------------------------------------------------------------------------------------

    def answer_gather(self, call: Call) -> Reply:
        """Desk: take a participant's payload; answers with all of them, or that they are not complete yet."""
        number = _number(call)
        with call.reading():
            client, what = int(call.said["client"]), str(call.said["what"])
        participants = self._present(number)
        refuse_other_client(call, client, self._site.log)
        if client not in participants:
            raise RefusedError(f"{self._site.describe(client)} takes no part in {named(number, what)}", "not yet")
        result = self._collect(number, what, client, bytes(call.body))
        if result is None:
            return Reply({"is_complete": False})
        with self._changed:
            if number in self._slots:
                self._slots[number].fetched.add(client)
                self._changed.notify_all()
        return packed(result)

    def answer_kept(self, call: Call) -> Reply:
        """Desk: the result with which this member has left a collective, if it has."""
        number = _number(call)
        client_of_caller(call, self._site.log)
        result = self._known(number)
        return Reply({"is_complete": False}) if result is None else packed(result)

    def _known(self, number: Number) -> Gathered | None:
        with self._changed:
            slot = self._slots.get(number)
            return self._results.get(number) or (slot.result if slot is not None else None)

    def _present(self, number: Number, log: MembershipLog | None = None) -> tuple[int, ...]:
        log = log or self._site.log
        if not log.records:
            raise RefusedError("no generation is open at this site yet", "not yet")
        return log.present(max(number[0], log.records[0].first_round))

    def _collect(self, number: Number, what: str, client: int, payload: bytes) -> Gathered | None:
        deadline_s = time.monotonic() + _POLL_S
        with self._changed:
            slot = self._slots.setdefault(number, _Slot(what))
            if slot.what != what:
                raise RefusedError(
                    f"{named(number, what)} at {self._site.describe(client)} is {slot.what!r} elsewhere: do callbacks "
                    "or modules differ between the sites?",
                    _OTHER,
                )
            if slot.result is None:
                self._withdraw(client)
                self._slots[number] = slot
                slot.payloads[client] = payload
            self._changed.notify_all()
        while time.monotonic() < deadline_s:
            with self._changed:
                result = self._results.get(number) or self._complete(number, slot)
                if result is not None:
                    return result
                self._changed.wait(_PAUSE_S)
            self._ask_who_has_left(number, slot)
            if client == self._site.client:
                self._site.check()
        return None

    def _withdraw(self, client: int) -> None:
        """Forget what a client has sent for collectives that are not complete: it is in one of them at a time."""
        for other, slot in list(self._slots.items()):
            if slot.result is None and slot.payloads.pop(client, None) is not None and not slot.payloads:
                del self._slots[other]

    def _complete(self, number: Number, slot: _Slot) -> Gathered | None:
        participants = self._present(number)
        if slot.result is None and all(client in slot.payloads for client in participants):
            self._finish(slot, {client: slot.payloads[client] for client in participants})
        return slot.result

    def _finish(self, slot: _Slot, result: Gathered) -> None:
        """A collective is complete; the caller holds the lock."""
        slot.result = result
        _forget_old(self._slots, [number for number, one in self._slots.items() if one.result is not None])
        self._changed.notify_all()

    def _ask_who_has_left(self, number: Number, slot: _Slot) -> None:
        with self._changed:
            if time.monotonic() < slot.asked_s + _ASK_S or self._site.client not in slot.payloads:
                return
            slot.asked_s = time.monotonic()
            absent = [client for client in self._present(number) if client not in slot.payloads]
        kept = self._kept_by(number, absent)
        with self._changed:
            # One that has left must not speak for those that have not: they come, or have left with the same.
            missing = [client for client in absent if client not in slot.payloads]
            if slot.result is None and missing and all(client in kept for client in missing):
                self._finish(slot, agreed(number, kept, slot.payloads, self._site.describe))

    def _kept_elsewhere(self, number: Number, payload: bytes) -> Gathered | None:
        """The result, where other participants have left with it and the hub has gone."""
        kept = self._kept_by(number, self._present(number))
        return agreed(number, kept, {self._site.client: payload}, self._site.describe) if kept else None

    def _kept_by(self, number: Number, clients: Sequence[int]) -> dict[int, Gathered]:
        """The results with which some clients have left, as they say; without those that have not, or do not answer."""
        kept = dict[int, Gathered]()
        for client in (client for client in clients if client != self._site.client):
            try:
                reply = self._site.ask(client, "kept", {"number": number}, b"", 1.0)
            except (UnreachableError, RefusedError):
                continue
            result = unpacked(reply, self._site.describe(client))
            if result is not None and self._was_complete(number, result):
                kept[client] = dict(sorted(result.items()))
        return kept

    def _was_complete(self, number: Number, result: Gathered) -> bool:
        """Whether these took part in a generation; what a later one has completed counts once that opens here."""
        records, clients = self._site.log.records, tuple(sorted(result))
        return any(self._present(number, MembershipLog(records[:n])) == clients for n in range(len(records), 0, -1))


def _number(call: Call) -> Number:
    with call.reading():
        round_index, index = call.said["number"]
        return int(round_index), int(index)


def _forget_old(by_number: dict[Number, Any], of: Iterable[Number]) -> None:
    for old in sorted(of)[:-_KEPT]:
        del by_number[old]
