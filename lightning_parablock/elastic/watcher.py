"""Asks the arbiter who is there, again and again, and begins a regroup where the members have changed."""

from __future__ import annotations

import logging
import math
import random
import threading
import time
from collections.abc import Callable, Sequence

from lightning_parablock.elastic.arbiter import Arbiter, Candidate
from lightning_parablock.elastic.attempt import Attempt
from lightning_parablock.elastic.roster import Roster
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import (
    ArbiterError,
    DroppedError,
    MembershipError,
    ParaBlockError,
    PeerLostError,
    ResourceError,
)
from lightning_parablock.membership.descriptors import Descriptors
from lightning_parablock.system.limited_wait import LimitedWait, Reports

log = logging.getLogger(__name__)

_EVERY_S = 0.3
_AGAIN_S = 2.0
_FOUND_AGAIN_S = 10.0
_REPORTS = Reports(first_s=0.0, every_s=30.0, line="parablock: {what}", say=log.warning)


class Watcher:
    """The thread of a site that keeps the arbiter's list up to date and coordinates where that is its turn.

    Args:
        seat: State of this site.
        arbiter: Says who is alive.
        newest_round: Round that the training has started last; admissions are counted by it.
        seal: Lets this site take part in no exchange until the next opening.

    Attributes:
        away: Why the arbiter has given no list since the last one; None if it has.
    """

    def __init__(self, seat: Seat, arbiter: Arbiter, newest_round: Callable[[], int], seal: Callable[[], None]) -> None:
        self._seat, self._arbiter, self._roster, self._seal = seat, arbiter, Roster(seat, newest_round), seal
        self._newest_round = newest_round
        self.away: ArbiterError | None = None
        self._attempt: Attempt | None = None
        self._not_before_s, self._failures = 0.0, 0
        self._closing = threading.Event()
        self._without_arbiter = LimitedWait(math.inf, reports=_REPORTS)
        self._beside_another_part = LimitedWait(math.inf, reports=_REPORTS)
        self._thread = threading.Thread(target=self._run, name="parablock-arbiter", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Stop asking; waits at most ``limit_s`` for the thread."""
        self._closing.set()
        self._arbiter.close()
        if self._thread.ident is not None:  # it has begun
            self._thread.join(limit_s)

    def await_attempt(self, limit_s: float) -> None:
        """Wait for the end of the attempt that this site coordinates, if there is one."""
        attempt = self._attempt
        if attempt is not None:
            attempt.join(limit_s)

    def _run(self) -> None:
        descriptors = Descriptors()
        while not self._closing.is_set() and self._seat.error is None:
            self._closing.wait(self._look(descriptors))
        descriptors.release()  # with them the model is saved where there are no others
        # Before the training sees the error, which may take a whole validation: the others must not wait for this site.
        self._arbiter.close()

    def _refuse_shortage(self, descriptors: Descriptors) -> None:
        shortage = descriptors.shortage()
        if shortage is not None:
            where = f"site {self._seat.options.site!r} cannot continue in round {self._newest_round()}"
            raise ResourceError(
                f"{where}: {shortage}; raise the limit (`ulimit -n`), let only the other sites reach its ports, and "
                "start it again with the same command"
            )

    def _look(self, descriptors: Descriptors) -> float:
        """Ask once, and do what follows; returns the seconds until the next time."""
        try:
            self._refuse_shortage(descriptors)
            self._seat.note_list(self._arbiter.ask(self._seat.me(), max(10.0, 2 * self._seat.options.silence_s)))
            self.away = None
            self._act()
            return _EVERY_S
        except ArbiterError as error:
            self._note_away(error)
            return _AGAIN_S
        except ParaBlockError as error:
            self._seat.fail(error)
        except Exception as error:
            log.exception("parablock: the thread that asks the lighthouse has failed")
            self._seat.fail(MembershipError(f"this site cannot follow the membership any more: {error!r}"))
        return 0.0

    def _note_away(self, error: ArbiterError) -> None:
        self.away = error
        if not self._closing.is_set():
            meanwhile = "; until then training continues, but no site can be replaced or admitted"
            self._without_arbiter.report(lambda: f"{error}{meanwhile if self._seat.in_rounds else ''}")

    def _act(self) -> None:
        seat = self._seat
        if seat.is_over:
            return
        if self._attempt is not None:
            self._attempt.look(seat.candidates)
            if self._attempt.is_alive():
                return
            ended, self._attempt = self._attempt, None
            self._failures = 0 if ended.has_opened else self._failures + 1
            if self._failures:
                longest_s = _AGAIN_S if seat.in_rounds else _FOUND_AGAIN_S
                pause_s = min(longest_s, _EVERY_S * 2 ** min(self._failures, 10))
                self._not_before_s = time.monotonic() + pause_s * (1 + random.random()) / 2
            self._roster.note_end(ended.participants, has_opened=ended.has_opened, slow=ended.slow)
        candidates = seat.candidates
        self._refuse_to_be_a_ghost(candidates)
        self._warn_of_another_part(candidates)
        self._refuse_to_lose_a_founder(candidates)
        self._pause_where_too_few(candidates)
        if not self._coordinates(candidates) or time.monotonic() < self._not_before_s:
            return
        is_founding = not _runs(candidates)
        roster = self._roster
        participants = roster.founders(candidates) if is_founding else roster.next_members(candidates)
        if participants:
            self._attempt = Attempt(seat, participants, is_founding=is_founding)
            self._attempt.start()

    def _coordinates(self, candidates: Sequence[Candidate]) -> bool:
        """Whether this site drives the next regroup: the lowest client id that is left of the newest generation.

        Each site answers from the record of its own newest generation. What the list says of the others may be
        slightly outdated, and two sites that relied on it would seal each other's attempts.
        """
        seat = self._seat
        if not _runs(candidates):
            # Guests have settings, ids and W of a run that may come back, and what they found would have its name.
            return min((one.site for one in candidates if not one.run), default="") == seat.options.site
        generation = seat.membership.generation
        if generation < 0 or not seat.in_rounds or any(one.opened > generation for one in candidates):
            return False
        late = self._roster.late(candidates)
        alive = {one.incarnation for one in candidates} - {one.incarnation for one in late}
        return seat.client == min((c for c, process in seat.incarnations.items() if process in alive), default=-1)

    def _pause_where_too_few(self, candidates: Sequence[Candidate]) -> None:
        """With fewer members than ``min_clients`` no exchange completes: the wait for more has a limit of its own."""
        seat = self._seat
        if not seat.in_rounds or seat.membership.is_sealed or seat.membership.generation < 0:
            return
        alive = {one.incarnation for one in candidates}
        here = [client for client, process in seat.incarnations.items() if process in alive]
        if len(here) + sum(one.is_ready for one in candidates) < seat.options.min_clients:
            self._roster.note_too_few([seat.site_of(client) for client in here])
            self._seal()

    def _refuse_to_be_a_ghost(self, candidates: Sequence[Candidate]) -> None:
        """The run has continued without this site: whatever it has trained since then is discarded."""
        member = self._seat.membership
        newest = max((one.opened for one in candidates), default=-1)
        is_dropped = self._seat.was_dropped(newest)
        if is_dropped and self._seat.is_leaving:
            with self._seat.changed:  # the message that it may go has not arrived
                self._seat.has_left = True
                self._seat.changed.notify_all()
            return
        if is_dropped:
            raise DroppedError(
                f"site {self._seat.options.site!r} was silent for too long: the run has continued without it, with "
                f"generation {newest}; what it has done since generation {member.generation} is lost, and its command, "
                "run again, brings it back with the newest model"
            )

    def _warn_of_another_part(self, candidates: Sequence[Candidate]) -> None:
        """A network that was cut may leave two parts, where ``min_clients`` is not more than half of the sites."""
        seat = self._seat
        with seat.changed:
            generation, mine = seat.membership.generation, {seat.incarnation, *seat.incarnations.values()}
        others = [one.site for one in candidates if one.opened == generation and one.incarnation not in mine]
        if generation >= 0 and others:
            self._beside_another_part.report(
                lambda: (
                    f"site {seat.options.site}: another part of this run, with a model of its own, trains at site "
                    f"{', '.join(others)}, also in generation {generation}: with min_clients="
                    f"{seat.options.min_clients} both parts of a network that was cut could continue. Stop one part "
                    "and start its sites again: they join the other one"
                )
            )

    def _refuse_to_lose_a_founder(self, candidates: Sequence[Candidate]) -> None:
        """Before its first round a run has nothing that is worth continuing, and its set-up is collective."""
        seat = self._seat
        if seat.membership.generation < 0 or seat.in_rounds or len(seat.log.records) > 1:
            return
        here = {one.incarnation for one in candidates}
        lost = [seat.describe(client) for client, process in seat.incarnations.items() if process not in here]
        if lost:
            raise PeerLostError(
                f"{', '.join(lost)} was lost before the first round: its process has ended, or the lighthouse has not "
                f"heard it for {seat.options.silence_s:g} s; see its log, and start all sites again"
            )


def _runs(candidates: Sequence[Candidate]) -> bool:
    """Whether a run is under way among them."""
    return any(one.opened >= 0 for one in candidates)
