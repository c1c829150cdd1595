"""Detection of pauses of this process itself, which must not be blamed on the other ranks."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass


def now_s() -> float:
    """Seconds on a clock that also runs while the machine sleeps, if the system has one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass(frozen=True)
class Pause:
    """A period in which this process did not run.

    Attributes:
        for_s: Length of the pause, in seconds.
        until_s: End of the pause, on the clock of :func:`now_s`.
    """

    for_s: float
    until_s: float


class Awake:
    """Detects pauses as gaps between ticks, of which there are many per second while the process runs.

    Args:
        tolerance_s: Longest time in seconds between two ticks that does not count as a pause.
    """

    def __init__(self, tolerance_s: float) -> None:
        self._tolerance_s = tolerance_s
        self._last_s = now_s()
        self._pauses: deque[Pause] = deque(maxlen=16)

    def tick(self) -> Pause | None:
        """Record a tick; returns the pause that has just ended, if there was one."""
        now = now_s()
        gap_s, self._last_s = now - self._last_s, now
        if gap_s <= self._tolerance_s:
            return None
        pause = Pause(gap_s, now)
        self._pauses.append(pause)
        return pause

    def pause_around(self, moment_s: float, at_least_s: float, within_s: float) -> Pause | None:
        """A pause of at least ``at_least_s`` that contains the moment, or ended at most ``within_s`` before it."""
        long = [p for p in self._pauses if p.for_s >= at_least_s]
        return next((p for p in long if p.until_s - p.for_s <= moment_s <= p.until_s + within_s), None)
