"""One program running on a host: its status, signals and log."""

from __future__ import annotations

import re
import time
from pathlib import Path

from benchmarks.hosts.errors import HostsError, HostsTimeoutError
from benchmarks.hosts.session import Session

POLL_S = 0.02
TAIL_CHARACTERS = 2000


class Host:
    """One program on one host, with its own process group and log file."""

    def __init__(self, session: Session, index: int, inner_pid: int, log_path: Path) -> None:
        self.index = index
        self.log_path = log_path
        self._session = session
        self._inner_pid = inner_pid
        self._log_at_close: str | None = None

    @property
    def pid(self) -> int | None:
        """The program's pid as the caller sees it, or None once it has ended."""
        return self._session.outer_pid(self._inner_pid)

    def poll(self) -> int | None:
        """Exit status, negative for the signal that ended it, or None while it runs."""
        return self._session.ask("status", pid=self._inner_pid)

    def wait(self, timeout_s: float) -> int:
        """Wait for the program to end; returns its exit status. Raises HostsTimeoutError with the end of the log."""
        deadline = time.monotonic() + timeout_s
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise HostsTimeoutError(f"host {self.index} still runs after {timeout_s} s; {self.log_tail()}")
            time.sleep(POLL_S)
        return status

    def wait_for_line(self, regex: str, timeout_s: float) -> re.Match[str]:
        """Wait until a line of the log matches; returns the match, whose ``string`` is that line.

        Raises HostsTimeoutError after ``timeout_s``, HostsError when the program ends without such a line; both show
        the end of the log.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            ended = self.poll() is not None  # asked first, so that a last line is still seen below
            for line in self.log_text().splitlines():
                if match := re.search(regex, line):
                    return match
            problem = f"host {self.index} printed no line matching {regex!r}"
            if ended:
                raise HostsError(f"{problem} before it ended with {self.poll()}; {self.log_tail()}")
            if time.monotonic() > deadline:
                raise HostsTimeoutError(f"{problem} within {timeout_s} s; {self.log_tail()}")
            time.sleep(POLL_S)

    def send_signal(self, number: int) -> None:
        """Signal the program's process group; nothing happens if it has ended."""
        self._session.ask("signal_group", pid=self._inner_pid, number=int(number))

    def log_text(self) -> str:
        """Everything the program has printed so far, both streams; still there after the cluster has closed."""
        if self._log_at_close is not None:
            return self._log_at_close
        return self.log_path.read_text(errors="replace")

    def keep_log(self) -> None:
        """Keep the log in memory, since its file is removed with the cluster."""
        self._log_at_close = self.log_text()

    def log_tail(self) -> str:
        """The end of the log, for an error message."""
        return f"its log ends:\n{self.log_text()[-TAIL_CHARACTERS:]}"
