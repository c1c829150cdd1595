"""Runs this process' own command again in its place: the same process id, and nothing left of what it held."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import shlex
import sys
from pathlib import Path

log = logging.getLogger(__name__)

_FOLDER = Path.cwd()
"""To which the words of the command refer; the program may have changed it since."""
_CHILD_S = 2.0


def why_not() -> str | None:
    """Why the command cannot be run again in place of this process; None if it can."""
    if "ipykernel" in sys.modules or hasattr(sys, "ps1") or sys.flags.interactive:
        return "this is a notebook or an interactive interpreter; run the cell or the call again"
    if multiprocessing.parent_process() is not None:
        return "another Python process has started it as a function; call that again"
    words = sys.orig_argv[1:]
    if not sys.executable or not words or words[-1] == "-":
        return "its program has no name; start it again"
    return None


def run_again(reason: str) -> None:
    """Run the command again in place of this process, or return if that cannot be done; both are logged.

    Exit handlers do not run, and all open descriptors but the first three are closed.

    Args:
        reason: Why.
    """
    problem = why_not()
    if problem is not None:
        log.error("parablock: %s; this process cannot run its command again by itself: %s", reason, problem)
        return
    command = [sys.executable, *sys.orig_argv[1:]]
    log.warning("parablock: %s; running the same command again: %s", reason, shlex.join(command))
    for child in multiprocessing.active_children():  # of data loaders, say: they would never end
        child.terminate()
        child.join(_CHILD_S)
    _flush()
    _close_at_exec()
    os.chdir(_FOLDER)
    os.execv(command[0], command)


def _flush() -> None:
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError, AttributeError):  # closed, or none at all
            stream.flush()


def _close_at_exec() -> None:
    """Native code opens sockets without asking that they be closed; closed now, its threads would see it."""
    folder = "/proc/self/fd" if Path("/proc/self/fd").is_dir() else "/dev/fd"
    for name in os.listdir(folder):
        descriptor = int(name)
        if descriptor > 2:
            with contextlib.suppress(OSError):  # the folder's own
                os.set_inheritable(descriptor, False)
