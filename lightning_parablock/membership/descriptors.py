"""File descriptors of this process: the limit is raised at the start, usage is counted, and a few are reserved."""

from __future__ import annotations

import contextlib
import logging
import os
from pathlib import Path

try:
    import resource
except ImportError:  # not a Unix
    resource = None

log = logging.getLogger(__name__)

_ENOUGH = 1 << 16
_LOW = 4096
_SPARE = 32
_MARGIN = 32
_OPEN = Path("/proc/self/fd")


def raise_limit() -> None:
    """Raise this process's limit of open files as far as permitted; warns if it is still low."""
    if resource is None:
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _ENOUGH if hard == resource.RLIM_INFINITY else min(hard, _ENOUGH)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    limit = _limit()
    if limit is not None and limit < _LOW:
        log.warning(
            "parablock: this process may hold only %d open files and connections (hard limit of `ulimit -n`); whatever "
            "connects to its ports uses them up, and training then ends with an error: raise the hard limit",
            limit,
        )


def _limit() -> int | None:
    if resource is None:
        return None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return None if soft == resource.RLIM_INFINITY else soft


class Descriptors:
    """Counts this process's open files, and reserves some with which a failing run can still be saved."""

    def __init__(self) -> None:
        self._spare: list[int] = []
        with contextlib.suppress(OSError):
            self._spare.append(os.open(os.devnull, os.O_RDONLY))
            self._spare += [os.dup(self._spare[0]) for _ in range(_SPARE)]

    def shortage(self) -> str | None:
        """A message that hardly any more files can be opened; None if they can, or where this cannot be determined."""
        limit = _limit()
        if limit is None or not _OPEN.is_dir():
            return None
        try:
            n_open = len(os.listdir(_OPEN)) - 1
        except OSError:  # no descriptor is left to list them with
            n_open = limit
        return f"{n_open} of {limit} open files and connections are in use" if limit - n_open < _MARGIN else None

    def release(self) -> None:
        """Release the reserved descriptors; may be called repeatedly."""
        spare, self._spare = self._spare, []
        for descriptor in spare:
            os.close(descriptor)
