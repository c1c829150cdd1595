"""A wait with a limit that is never silent: every few seconds it reports for what and how long it still waits."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

from lightning_parablock.system.looked_after import run_looked_after

_FIRST_REPORT_S = 5.0
_NEXT_REPORT_S = 15.0


class LimitedWait:
    """One limit for a sequence of waits.

    Args:
        limit_s: Seconds from now until the last of them must be over.
        say: Writes one line for the user.
    """

    def __init__(self, limit_s: float, say: Callable[[str], object] | None = None) -> None:
        self.limit_s = limit_s
        self._say = _say if say is None else say
        self._start_s = time.monotonic()
        self._report_s = self._start_s + _FIRST_REPORT_S

    @property
    def remaining_s(self) -> float:
        """Seconds left, never less than 0."""
        return max(0.0, self._start_s + self.limit_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self.remaining_s == 0

    def report(self, what: Callable[[], str]) -> None:
        """Say what is waited for if a line is due: after 5 s, then every 15 s.

        Args:
            what: For whom and where, as the object of "waiting for".
        """
        now_s = time.monotonic()
        if now_s < self._report_s:
            return
        self._report_s = now_s + _NEXT_REPORT_S
        self._say(f"parablock: waiting for {what()}; gives up in {self.remaining_s:.0f} s")


def run_reported(action: Callable[[], object], wait: LimitedWait, what: Callable[[], str]) -> None:
    """Run what waits for other ranks by itself, in silence and perhaps for long.

    Args:
        action: Runs on a daemon thread, which is left behind where it does not end.
        wait: The limit.
        what: For whom it waits, see :meth:`LimitedWait.report`.

    Raises:
        TimeoutError: it has not ended within the limit.
        Exception: what it has raised.
    """

    def look() -> None:
        if wait.is_over:
            raise TimeoutError(f"no answer within {wait.limit_s:g} s")
        wait.report(what)

    failure = run_looked_after(action, look, "parablock-waiting")
    if failure is not None:
        raise failure


def _say(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()
