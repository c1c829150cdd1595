"""A wait with a limit that is never silent: it reports for what and how long it still waits."""

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
    """When a wait reports, and in which words.

    Attributes:
        first_s: Seconds before the first report.
        every_s: Seconds between two reports.
        line: With the fields ``what``, ``waited_s``, ``remaining_s`` and ``limit_s``.
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
"""For the start of a run, which users watch, before any logging is set up."""

LATE = Reports(31.0, 60.0, "parablock: waiting for {waited_s:.0f} s (limit {limit_s:g} s): {what}", log.warning)
"""For training, where short waits are part of every round."""


class LimitedWait:
    """One limit for a sequence of waits.

    Args:
        limit_s: Seconds from now until the last of them must be over.
        say: Writes one line for the user; None as ``reports`` does.
        reports: When and in which words it reports.
    """

    def __init__(self, limit_s: float, say: Callable[[str], object] | None = None, reports: Reports = SOON) -> None:
        self.limit_s = limit_s
        self._say, self._reports = say or reports.say, reports
        self._start_s = time.monotonic()
        self._report_s = self._start_s + reports.first_s

    @property
    def remaining_s(self) -> float:
        """Seconds left, never less than 0."""
        return max(0.0, self._start_s + self.limit_s - time.monotonic())

    @property
    def is_over(self) -> bool:
        """Whether the limit has passed."""
        return self.remaining_s == 0

    def report(self, what: Callable[[], str]) -> None:
        """Write a line if one is due; to be called again and again while the wait lasts.

        Args:
            what: Returns for what and for whom it waits, in words.
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
