"""The end of the process with an exit code, whatever threads and other processes there still are."""

from __future__ import annotations

import logging
import os
import sys
import threading

FAILED, USAGE, INTERRUPTED, TERMINATED = 1, 2, 130, 143
"""Exit codes; the last two are what shells use for SIGINT and SIGTERM."""


def end(code: int) -> int:
    """End what this process has started, where it failed; the exit code, unless the process cannot end by itself."""
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
    """End the process here, because a thread is stuck in a receive from a client that is lost.

    Nothing can free such a thread, and Python's own way out aborts when the thread wakes up in the middle of it.
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
