"""Where the members' trainers were at the starts of the newest rounds: a joiner begins with one of these states."""

from __future__ import annotations

import time

from lightning_parablock.desk.message import Reply
from lightning_parablock.desk.service import Call
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import MembershipError, PeerTimeoutError, RefusedError, UnreachableError
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.system.reading import reading

_PAUSE_S = 0.1
_ASK_S = 2.0
_KEPT = 3


class RoundStarts:
    """The newest states of this site's trainer, and access to those of others.

    Args:
        seat: State of this site.

    Attributes:
        newest: Round that has started last here; -1 for none.
    """

    def __init__(self, seat: Seat) -> None:
        self._seat = seat
        self._states: dict[int, bytes] = {}
        self.newest = -1

    def keep(self, round_index: int, state: bytes) -> None:
        """A round begins here, with this state of the trainer."""
        with self._seat.changed:
            self.newest = round_index
            self._states[round_index] = state
            first = self._seat.log.newest.first_round
            for old in [t for t in self._states if t <= round_index - _KEPT and t != first]:
                del self._states[old]
            self._seat.changed.notify_all()

    def of_others(self, round_index: int) -> bytes:
        """State of the others' trainers at the start of a round, as soon as one of them has reached it.

        Raises:
            MembershipError: the run has ended.
            PeerTimeoutError: no member has reached it within ``straggler_timeout_s`` of an opening.
        """
        seat = self._seat
        limit_s = seat.options.straggler_timeout_s  # the members train the round before it, and may validate after it
        wait, began = LimitedWait(limit_s, reports=LATE), seat.log.generation
        while True:
            seat.check()
            if seat.log.generation != began:
                wait, began = LimitedWait(limit_s, reports=LATE), seat.log.generation
            for client in (c for c in seat.log.newest.members if c != seat.client):
                try:
                    reply = seat.ask(client, "trainer", {"round": round_index}, b"", _ASK_S)
                except (UnreachableError, RefusedError):
                    continue
                with reading(f"the answer of {seat.describe(client)} to 'trainer'"):
                    is_here, is_over = bool(reply.said["is_here"]), bool(reply.said["is_over"])
                if is_here:
                    return bytes(reply.body)
                self._refuse_ended_run(round_index, is_over=is_over)
            listed = {one.site for one in seat.candidates} - {seat.options.site}
            self._refuse_ended_run(round_index, is_over=not listed)
            time.sleep(_PAUSE_S)
            if wait.is_over:
                raise PeerTimeoutError(
                    f"no member has begun round {round_index} within {wait.limit_s:g} s; raise straggler_timeout_s if "
                    "a round takes longer"
                )
            wait.report(lambda: f"a member to begin round {round_index}, with which this site starts")

    def _refuse_ended_run(self, round_index: int, *, is_over: bool) -> None:
        if is_over:
            raise MembershipError(
                f"the run has ended while this site was joining it: round {round_index} will not begin. The finished "
                "model is at the other sites, and there is nothing left to train"
            )

    def answer(self, call: Call) -> Reply:
        """Desk: this site's state at the start of a round, once it is there."""
        with call.reading():
            round_index = int(call.said["round"])
        with self._seat.changed:
            call.until(self._seat.changed, lambda: round_index in self._states or self._seat.is_over)
            state = self._states.get(round_index)
        said = {"is_here": state is not None, "is_over": self._seat.is_over}
        return Reply(said, state or b"")
