"""A wait that has a limit and is not silent."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

log = logging.getLogger(__name__)

FIRST_REPORT_S = 30.0
_REPORT_EVERY_S = 60.0


class Patience:
    """Tells when a wait has reached its limit, and logs every minute what it is for.

    Args:
        limit_s: Seconds until the wait is given up.
        describe: What is waited for, and for which clients, in words.
    """

    def __init__(self, limit_s: float, describe: Callable[[], str]) -> None:
        self._limit_s, self._describe = limit_s, describe
        self._since_s = time.monotonic()
        self._next_s = FIRST_REPORT_S

    def is_over(self) -> bool:
        """Whether the limit has been reached; to be asked again and again while the wait lasts."""
        waited_s = time.monotonic() - self._since_s
        if waited_s > self._limit_s:
            return True
        if waited_s > self._next_s:
            self._next_s += _REPORT_EVERY_S
            log.warning("parablock: waiting for %.0f s (limit %g s): %s", waited_s, self._limit_s, self._describe())
        return False
