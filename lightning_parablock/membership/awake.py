"""Notices that this process itself was stopped: its silence must not be blamed on the others."""

from __future__ import annotations

import time
from collections import deque
from dataclasses import dataclass


def now_s() -> float:
    """Seconds on a clock that also runs while the machine sleeps, where the system has one."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass(frozen=True)
class Pause:
    """A time in which this process did not run.

    Attributes:
        for_s: Its length.
        until_s: Its end, on :func:`now_s`.
    """

    for_s: float
    until_s: float


class Awake:
    """Ticks many times a second while the process runs; a gap between two ticks is a pause.

    Args:
        tolerance_s: Longest time between two ticks that is no pause.
    """

    def __init__(self, tolerance_s: float) -> None:
        self._tolerance_s = tolerance_s
        self._last_s = now_s()
        self._pauses: deque[Pause] = deque(maxlen=16)

    def tick(self) -> Pause | None:
        """Returns the pause that has just ended, if there was one."""
        now = now_s()
        gap_s, self._last_s = now - self._last_s, now
        if gap_s <= self._tolerance_s:
            return None
        pause = Pause(gap_s, now)
        self._pauses.append(pause)
        return pause

    def pause_around(self, moment_s: float, at_least_s: float, within_s: float) -> Pause | None:
        """A pause of a certain length in which something happened, or soon after which it did."""
        long = [p for p in self._pauses if p.for_s >= at_least_s]
        return next((p for p in long if p.until_s - p.for_s <= moment_s <= p.until_s + within_s), None)
