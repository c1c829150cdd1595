"""How long a member waits for the others, across openings: only what has changed by then begins a limit anew."""

from __future__ import annotations

from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.system.limited_wait import LATE, LimitedWait


class Patience:
    """The limits of one wait: for members that are alive while a generation is open, and for the next one between.

    An opening that brings neither other members nor anything that has landed since the one before continues the limit
    of that one: where an exchange fails in every generation, the members connect again and again, and the wait must end
    all the same. Time between two generations has a limit of its own and does not count.

    Args:
        straggler_timeout_s: Longest wait for a member that is alive.
        rejoin_timeout_s: Longest wait for the next generation.
    """

    def __init__(self, straggler_timeout_s: float, rejoin_timeout_s: float) -> None:
        self._straggler_timeout_s, self._rejoin_timeout_s = straggler_timeout_s, rejoin_timeout_s
        self._phase: tuple[int, bool] | None = None
        self._progress = (-1, BEFORE_ALL)
        self._wait = LimitedWait(straggler_timeout_s, reports=LATE)
        self._waited_s = 0.0

    def now(self, log: MembershipLog, is_sealed: bool, landed: Key) -> LimitedWait:
        """The limit that counts now.

        Args:
            log: The log up to the generation that was opened last.
            is_sealed: Whether the next one is due.
            landed: Newest exchange that has landed here.
        """
        phase = (log.generation, is_sealed)
        if phase == self._phase:
            return self._wait
        if self._phase is not None and not self._phase[1]:
            self._waited_s = self._wait.waited_s
        self._phase = phase
        if is_sealed:
            self._wait = LimitedWait(self._rejoin_timeout_s, reports=LATE)
            return self._wait
        progress = (_last_change(log), landed)
        if progress != self._progress:
            self._progress, self._waited_s = progress, 0.0
        self._wait = LimitedWait(self._straggler_timeout_s, reports=LATE, waited_s=self._waited_s)
        return self._wait


def _last_change(log: MembershipLog) -> int:
    """The newest generation that did not merely connect the members of the one before again."""
    return next((one.generation for one in reversed(log.records) if one.joiners or one.gone), -1)
