"""Who takes part in the next regroup, as the coordinator sees it: members that are left, and guests that are ready."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence

from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.reach import Reach, who_goes
from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import CutOffError
from lightning_parablock.system.limited_wait import LimitedWait, Reports

log = logging.getLogger(__name__)

_TOO_FEW = Reports(
    first_s=0.0,
    every_s=30.0,
    line="parablock: {what}: the run waits; start the lost sites again with the same command, in the next "
    "{remaining_s:.0f} s",
    say=log.warning,
)
_OUT_S = 60.0
_FAILURES = 2
"""Attempts that fail in a row before the sites are asked whom they reach."""


class Roster:
    """Decides who is to take part.

    Args:
        seat: State of this site.
        newest_round: Round that the training has started last; admissions are counted by it.
    """

    def __init__(self, seat: Seat, newest_round: Callable[[], int]) -> None:
        self._seat, self._newest_round = seat, newest_round
        self._reach = Reach(seat)
        self._since_s: dict[str, float] = {}
        self._out_until_s: dict[str, float] = {}
        self._times_out: dict[str, int] = {}
        self._failures = 0
        self._too_few: tuple[int, LimitedWait] | None = None

    def founders(self, fresh: Sequence[Candidate]) -> list[Candidate]:
        """All that are here, once they are enough to found the run; a guest of another one waits for its members."""
        fresh = [one for one in fresh if not one.run and not self._is_out(one)]
        return fresh if len(fresh) >= self._seat.options.min_clients else []

    def next_members(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Who takes part in a regroup; empty where none is due, or too few are here."""
        seat, record = self._seat, self._seat.log.newest
        processes = {process: client for client, process in seat.incarnations.items()}
        listed = [one for one in candidates if one.incarnation in processes]
        here = [one for one in listed if not self._is_out(one)]
        ready = [] if seat.is_draining else [one for one in candidates if one.is_ready and one not in listed]
        guests = [one for one in ready if not self._is_out(one)]
        is_late = self._newest_round() >= record.first_round + seat.options.admit_every_rounds - 1
        if self._may_be_there(candidates):
            return []
        changed = (
            len(here) < len(record.members)
            or bool(self.late(here))
            or any(one.is_leaving for one in here)
            or any(one.sealed > record.generation for one in here)
            or (bool(guests) and is_late)
        )
        if not changed:
            return []
        staying = [one for one in here if not one.is_leaving]
        if len(staying) + len(guests) < seat.options.min_clients:
            self.note_too_few([one.site for one in staying])
            return []
        return here + guests

    def note_end(self, participants: Sequence[Candidate], *, has_opened: bool, slow: Sequence[Candidate] = ()) -> None:
        """An attempt has ended. After two in a row that failed, a badly connected site is left out.

        Args:
            participants: Who took part.
            has_opened: Whether all of them have opened the generation.
            slow: Guests for which the members wait no longer: they are left out at once.

        Raises:
            CutOffError: it is this site.
        """
        if slow:
            self._leave_out_guests(slow, "the members continue without it")
            return
        self._failures = 0 if has_opened else self._failures + 1
        if has_opened:
            for one in participants:
                self._times_out.pop(one.site, None)
        if self._failures < _FAILURES:
            return
        self._failures = 0
        clients = {process: client for client, process in self._seat.incarnations.items()}
        order = sorted(participants, key=lambda one: (clients.get(one.incarnation, 1 << 30), one.site))
        site = who_goes(self._reach.of_all(order), [one.site for one in order])
        if site is None and not clients:
            return  # founders: they may wait for one that has a checkpoint, and no member could continue without them
        if site is None:
            guests = [one for one in participants if one.incarnation not in clients]
            self._leave_out_guests(guests, "two attempts with it have failed")
            return
        if site == self._seat.options.site:
            raise CutOffError(
                f"site {site} reaches the lighthouse but not all other sites, and leaves so that they can continue; "
                "open the ports between them, then start it again"
            )
        wait_s = self._longer_wait(site)
        log.warning(
            "parablock: site %s is left out: not all of the other sites reach it, although it is alive; look at the "
            "network between it and them. It is tried again in %g s at the earliest",
            *(site, wait_s),
        )
        # A member's process ends and runs its command again; the new one, too, would disturb the others. The process of
        # a founder or guest stays the same, and may be reached once the network is mended.
        self._out_until_s[site] = time.monotonic() + wait_s
        members = [one.incarnation for one in participants if one.site == site and one.incarnation in clients]
        self._out_until_s |= dict.fromkeys(members, math.inf)

    def late(self, candidates: Sequence[Candidate]) -> list[Candidate]:
        """Members that have not opened this site's generation for the silence limit: "open" did not reach them."""
        generation = self._seat.membership.generation
        members = set(self._seat.incarnations.values())
        behind = [one for one in candidates if one.incarnation in members and one.opened < generation]
        since_s = self._long_since("behind", {one.site for one in behind})
        return [one for one in behind if one.site in since_s]

    def _leave_out_guests(self, guests: Sequence[Candidate], why: str) -> None:
        """All reach all, and still the attempts fail: the members can continue without the guests."""
        for one in guests:
            wait_s = self._longer_wait(one.site)
            log.warning(
                "parablock: site %s is not admitted for %g s: %s (%s); see its log",
                *(one.site, wait_s, why, self._seat.problem or "no reason known"),
            )
            self._out_until_s[one.incarnation] = time.monotonic() + wait_s  # a process that was repaired need not wait

    def _longer_wait(self, site: str) -> float:
        """Seconds without a site, twice as many as the time before."""
        self._times_out[site] = self._times_out.get(site, 0) + 1
        return _OUT_S * 2 ** min(self._times_out[site] - 1, 6)

    def _is_out(self, one: Candidate) -> bool:
        return max(self._out_until_s.get(name, 0.0) for name in (one.incarnation, one.site)) > time.monotonic()

    def _may_be_there(self, candidates: Sequence[Candidate]) -> bool:
        """Whether a member that the list lacks still answers, so that the list may be incomplete.

        A lighthouse that has just been started knows only those who have asked it since. It is believed once the
        silence limit has passed, even if a member answers.
        """
        listed = {one.site for one in candidates}
        vanished = {name for c in self._seat.log.newest.members if (name := self._seat.site_of(c)) not in listed}
        if not vanished:
            return False
        if self._long_since("absent", vanished):
            return False
        return all(self._reach.answers(self._seat.address_of(site)) for site in vanished)

    def _long_since(self, what: str, sites: set[str]) -> set[str]:
        """Those of some sites to which something has applied for the silence limit."""
        now_s = time.monotonic()
        fresh = {f"{what} {site}": site for site in sites}
        self._since_s = {k: s for k, s in self._since_s.items() if k in fresh or not k.startswith(f"{what} ")}
        long_s = self._seat.options.silence_s
        return {site for key, site in fresh.items() if now_s - self._since_s.setdefault(key, now_s) > long_s}

    def note_too_few(self, here: Sequence[str]) -> None:
        """Say from time to time that the run waits for more sites, and how much longer; each generation begins anew."""
        record, options = self._seat.log.newest, self._seat.options
        if self._too_few is None or self._too_few[0] != record.generation:
            self._too_few = record.generation, LimitedWait(options.rejoin_timeout_s, reports=_TOO_FEW)
        self._too_few[1].report(
            lambda: (
                f"{len(here)} of {len(record.members)} sites {'is' if len(here) == 1 else 'are'} left "
                f"({', '.join(here)}), fewer than min_clients={options.min_clients}"
            )
        )
