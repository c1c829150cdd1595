"""Waits with a limit and with reports on what they wait for, and for how much longer."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

from lightning_parablock.system.looked_after import run_looked_after

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reports:
    """Times and wording of a wait's reports.

    Attributes:
        first_s: Seconds before the first report.
        every_s: Seconds between two reports.
        line: Format string with the fields ``what``, ``waited_s``, ``remaining_s`` and ``limit_s``.
        say: Writes one line for the user.
    """

    first_s: float
    every_s: float
    line: str
    say: Callable[[str], object]


def _to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


SOON = Reports(5.0, 15.0, "parablock: waiting for {what}; gives up in {remaining_s:.0f} s", _to_stderr)
"""Reports at the start of a run, which users watch, before any logging is set up."""

LATE = Reports(31.0, 60.0, "parablock: has waited {waited_s:.0f} s of at most {limit_s:g} s: {what}", log.warning)
"""Reports during training, where short waits are part of every round."""


class LimitedWait:
    """A common limit for a sequence of waits.

    Args:
        limit_s: Seconds from now until the last of them must be over.
        say: Writes one line for the user; None for that of ``reports``.
        reports: Times and wording of the reports.
        waited_s: Seconds of the limit that have been waited before.
    """

    def __init__(
        self,
        limit_s: float,
        say: Callable[[str], object] | None = None,
        reports: Reports = SOON,
        waited_s: float = 0.0,
    ) -> None:
        self.limit_s = limit_s
        self._say, self._reports = say or reports.say, reports
        now_s = time.monotonic()
        self._start_s, self._report_s = now_s - waited_s, now_s + reports.first_s

    @property
    def waited_s(self) -> float:
        """Seconds of the limit that have passed."""
        return time.monotonic() - self._start_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never less than 0."""
        return max(0.0, self._start_s + self.limit_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self.remaining_s == 0

    def renew(self) -> None:
        """Begin the limit anew; reports are due as before."""
        self._start_s = time.monotonic()

    def report(self, what: Callable[[], str]) -> None:
        """Write a line if one is due; to be called repeatedly during the wait.

        Args:
            what: Returns what it waits for, and which ranks, in words.
        """
        now_s = time.monotonic()
        if now_s < self._report_s:
            return
        self._report_s = now_s + self._reports.every_s
        self._say(
            self._reports.line.format(
                what=what(), waited_s=now_s - self._start_s, remaining_s=self.remaining_s, limit_s=self.limit_s
            )
        )


def run_reported(action: Callable[[], object], wait: LimitedWait, what: Callable[[], str]) -> None:
    """Run an action that waits silently for other ranks, with a limit and reports.

    Args:
        action: Runs on a daemon thread, which is abandoned if it does not end.
        wait: Limit and reports.
        what: Returns what it waits for, see :meth:`LimitedWait.report`.

    Raises:
        TimeoutError: the action has not ended within the limit.
        Exception: any exception raised by the action.
    """

    def look() -> None:
        if wait.is_over:
            raise TimeoutError(f"no answer within {wait.limit_s:g} s")
        wait.report(what)

    failure = run_looked_after(action, look, "parablock-waiting")
    if failure is not None:
        raise failure
