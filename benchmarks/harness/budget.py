"""The time that one start of a long benchmark may take."""

from __future__ import annotations

import time
from collections.abc import Callable


class Budget:
    """Hours from now on.

    Args:
        hours: The limit; None for no limit.
        clock: Returns seconds.
    """

    def __init__(self, hours: float | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._end_s = float("inf") if hours is None else clock() + 3600 * hours

    @property
    def left_s(self) -> float:
        """Seconds that are left; infinite without a limit, negative after it."""
        return self._end_s - self._clock()

    def fits(self, needed_s: float) -> bool:
        """Whether something that takes so long would be over in time."""
        return self.left_s > needed_s
