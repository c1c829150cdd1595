"""Asks the arbiter who is there, again and again, and begins a regroup where the members have changed."""

from __future__ import annotations

import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence

from lightning_parablock.elastic.arbiter import Arbiter, Candidate
from lightning_parablock.elastic.attempt import Attempt
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import (
    ArbiterError,
    DroppedError,
    MembershipError,
    ParaBlockError,
    PeerLostError,
    RefusedError,
)

log = logging.getLogger(__name__)

_EVERY_S = 0.3
_AGAIN_S = 2.0
_SAY_S = 30.0
_PING_S = 1.0


class Watcher:
    """The thread of a site that keeps the arbiter's list up to date and coordinates where that is its turn.

    Args:
        seat: State of this site.
        arbiter: Says who is alive.
        newest_round: Round that the training has started last; admissions are counted by it.
    """

    def __init__(self, seat: Seat, arbiter: Arbiter, newest_round: Callable[[], int]) -> None:
        self._seat, self._arbiter, self._newest_round = seat, arbiter, newest_round
        self._attempt: Attempt | None = None
        self._since_s: dict[str, float] = {}
        self._not_before_s = 0.0
        self._closing = threading.Event()
        self._away_since_s = self._said_s = 0.0
        self._thread = threading.Thread(target=self._run, name="parablock-arbiter", daemon=True)

    def start(self) -> None:
        """Begin to ask."""
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Stop asking; waits at most ``limit_s`` for the thread."""
        self._closing.set()
        self._arbiter.close()
        self._thread.join(limit_s)

    def await_attempt(self, limit_s: float) -> None:
        """Wait for the end of the attempt that this site coordinates, if there is one."""
        attempt = self._attempt
        if attempt is not None:
            attempt.join(limit_s)

    @property
    def arbiter_away_s(self) -> float:
        """Seconds for which the arbiter has not answered; 0 if it does."""
        return time.monotonic() - self._away_since_s if self._away_since_s else 0.0

    def _run(self) -> None:
        while not self._closing.is_set():
            pause_s = _EVERY_S
            try:
                self._seat.note_list(self._arbiter.ask(self._seat.me(), max(10.0, 2 * self._seat.options.silence_s)))
                self._away_since_s = 0.0
                self._act()
            except ArbiterError as error:
                self._note_away(error)
                pause_s = _AGAIN_S
            except ParaBlockError as error:
                self._seat.fail(error)
                return
            except Exception as error:
                log.exception("parablock: the thread that asks the lighthouse has failed")
                self._seat.fail(MembershipError(f"this site cannot follow the membership any more: {error!r}"))
                return
            self._closing.wait(pause_s)

    def _note_away(self, error: ArbiterError) -> None:
        now_s = time.monotonic()
        self._away_since_s = self._away_since_s or now_s
        if now_s - self._said_s > _SAY_S and not self._closing.is_set():
            self._said_s = now_s
            log.warning(
                "parablock: the lighthouse at %s does not answer (%s); training continues, but no site can be replaced "
                "or admitted until it is back: start it again with the same command",
                self._seat.options.lighthouse,
                error,
            )

    def _act(self) -> None:
        seat = self._seat
        if seat.is_over:
            return
        if self._attempt is not None:
            self._attempt.look(seat.candidates)
            if self._attempt.is_alive():
                return
            if not self._attempt.has_opened:
                self._not_before_s = time.monotonic() + _EVERY_S * (1 + random.random())
            self._attempt = None
        candidates = seat.candidates
        self._refuse_to_be_a_ghost(candidates)
        self._refuse_to_lose_a_founder(candidates)
        if not self._coordinates(candidates) or time.monotonic() < self._not_before_s:
            return
        is_founding = not _runs(candidates)
        participants = self._founders(candidates) if is_founding else self._next_members(candidates)
        if participants:
            self._attempt = Attempt(seat, participants, is_founding=is_founding)
            self._attempt.start()

    def _coordinates(self, candidates: Sequence[Candidate]) -> bool:
        """Whether this site drives the next regroup: the lowest client id that is left of the newest generation.

        Everybody answers from the record of its own newest generation. What the list says of the others may be a little
        old, and two sites that took it at its word would seal each other's attempts.
        """
        seat = self._seat
        if not _runs(candidates):
            return min(one.site for one in candidates) == seat.options.site
        generation = seat.membership.generation
        if generation < 0 or not seat.in_rounds or any(one.opened > generation for one in candidates):
            return False
        alive = {one.incarnation for one in candidates}
        return seat.client == min((c for c, process in seat.incarnations.items() if process in alive), default=-1)

    def _refuse_to_be_a_ghost(self, candidates: Sequence[Candidate]) -> None:
        """The run has gone on without this site: whatever it has trained since then counts for nothing."""
        member = self._seat.membership
        newest = max((one.opened for one in candidates), default=-1)
        if member.generation >= 0 and member.was_dropped(newest):
            raise DroppedError(
                f"site {self._seat.options.site!r} was silent for too long: the run has continued without it, with "
                f"generation {newest}; it holds {member.generation} and comes back as a joiner"
            )

    def _refuse_to_lose_a_founder(self, candidates: Sequence[Candidate]) -> None:
        """Before its first round a run has nothing that is worth continuing, and its set-up is collective."""
        seat = self._seat
        if seat.membership.generation < 0 or seat.in_rounds or seat.log.newest.first_round > 0:
            return
        here = {one.incarnation for one in candidates}
        lost = [seat.describe(client) for client, process in seat.incarnations.items() if process not in here]
        if lost:
            raise PeerLostError(
                f"{', '.join(lost)} was lost before the first round: its process has ended, or the lighthouse has not "
                f"heard it for {seat.options.silence_s:g} s; see its log, and start all sites again"
            )

    def _founders(self, fresh: Sequence[Candidate]) -> list[Candidate]:
        """All that are here, once they are enough to found the run."""
        return list(fresh) if len(fresh) >= self._seat.options.min_clients else []

    def _next_members(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Who takes part in a regroup; empty where none is due, or too few are here."""
        seat = self._seat
        record = seat.log.newest
        by_site = {one.site: one for one in candidates}
        here = [
            one
            for client in record.members
            if (one := by_site.get(record.sites[client])) is not None
            and one.incarnation == seat.incarnations.get(client)
        ]
        absent = {record.sites[client] for client in record.members} - {one.site for one in here}
        behind = {one.site for one in here if one.opened < record.generation}
        guests = [one for one in candidates if one.is_ready and one not in here]
        is_late = self._newest_round() >= record.first_round + seat.options.admit_every_rounds - 1
        if self._may_be_there(absent, by_site):
            return []
        changed = (
            bool(absent)
            or self._for_long("behind", behind)
            or any(one.is_leaving for one in here)
            or any(one.sealed > record.generation for one in here)
            or (bool(guests) and is_late)
        )
        staying = [one for one in here if not one.is_leaving]
        if not changed:
            return []
        if len(staying) + len(guests) < seat.options.min_clients:
            self._note_too_few(record.members, here)
            return []
        return here + guests

    def _may_be_there(self, absent: set[str], by_site: Mapping[str, Candidate]) -> bool:
        """Whether a member that the list lacks still answers, so that the list may be short of it.

        A lighthouse that has just been started knows only those who have asked it since. It is believed once the
        silence limit has passed, whoever answers.
        """
        vanished = {site for site in absent if site not in by_site}
        if not vanished:
            return False
        return not self._for_long("absent", vanished) and all(map(self._answers, vanished))

    def _answers(self, site: str) -> bool:
        try:
            self._seat.call(self._seat.address_of(site), "log", {}, _PING_S)
        except RefusedError:
            return True
        except ParaBlockError:
            return False
        return True

    def _for_long(self, what: str, sites: set[str]) -> bool:
        """Whether something has been so of some of these sites for the silence limit."""
        now_s = time.monotonic()
        fresh = {f"{what} {site}" for site in sites}
        self._since_s = {k: s for k, s in self._since_s.items() if k in fresh or not k.startswith(f"{what} ")}
        return any(now_s - self._since_s.setdefault(key, now_s) > self._seat.options.silence_s for key in fresh)

    def _note_too_few(self, members: Sequence[int], here: Sequence[Candidate]) -> None:
        if time.monotonic() - self._said_s > _SAY_S:
            self._said_s = time.monotonic()
            log.warning(
                "parablock: %d of %d sites are left (%s), and min_clients is %d: waiting up to %g s for more; start "
                "the lost ones again with the same command",
                len(here),
                len(members),
                ", ".join(one.site for one in here),
                self._seat.options.min_clients,
                self._seat.options.rejoin_timeout_s,
            )


def _runs(candidates: Sequence[Candidate]) -> bool:
    """Whether a run is under way among them."""
    return any(one.opened >= 0 for one in candidates)
