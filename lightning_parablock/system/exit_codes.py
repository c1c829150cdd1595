"""Exit of the process with an exit code, whatever threads and other processes are still running."""

from __future__ import annotations

import logging
import os
import sys
import threading

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes; the last two are those of shells for SIGINT and SIGTERM."""


def end(code: int) -> int:
    """Stop all processes started by this one if it failed; returns the exit code, or exits if threads are stuck."""
    launcher = sys.modules.get("lightning_parablock.launching.launcher")  # otherwise nothing was started
    if code and launcher is not None:
        launcher.end_others()
    if code and has_stuck_threads():
        _leave(code)
    return code


def has_stuck_threads() -> bool:
    """Whether a thread of this package is waiting for a client that may be lost."""
    return any(thread.name.startswith("parablock-") for thread in threading.enumerate())


def _leave(code: int) -> None:
    """Exit at once, because a thread is stuck in a receive from a lost client.

    Nothing can free such a thread, and Python's normal exit aborts if the thread wakes up during it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
