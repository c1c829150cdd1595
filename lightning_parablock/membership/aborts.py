"""Aborts of native code: gloo's thread throws an exception that nothing catches, and C++ ends the process by SIGABRT.

This happens when no more connections can be accepted, or when messages of different lengths meet in a group of the
user's own collectives. The thread that threw never returns from the handler; the training thread, which is unaffected,
learns of it at its next step, saves its state and raises. An abort of a Python thread itself is not handled.
"""

from __future__ import annotations

import atexit
import ctypes
import faulthandler
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_LAST_RESORT_S = 900
_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)
_installed: list[object] = []
"""Handlers that C may call, kept alive: after a failure a watch is not closed, and may be garbage-collected."""


class Aborts:
    """Handles SIGABRT in threads not created by Python.

    Args:
        tell: Called once, in such a thread.
    """

    def __init__(self, tell: Callable[[], None]) -> None:
        self._tell = tell
        self._has_aborted = False
        self._handler = _HANDLER(self._handle)
        self._libc = ctypes.CDLL(None)
        self._libc.signal.restype = ctypes.c_void_p
        self._libc.signal.argtypes = [ctypes.c_int, ctypes.c_void_p]
        if not faulthandler.is_enabled() and sys.__stderr__ is not None:
            faulthandler.enable(sys.__stderr__)
        _installed.append(self._handler)
        self._before = self._libc.signal(signal.SIGABRT, ctypes.cast(self._handler, ctypes.c_void_p))

    def close(self) -> None:
        """Restore the previous handler of the signal."""
        if not self._has_aborted:
            self._libc.signal(signal.SIGABRT, self._before)
            _installed.remove(self._handler)

    def _handle(self, signum: int) -> None:
        if threading.get_ident() in {thread.ident for thread in threading.enumerate()}:
            self._libc.signal(signal.SIGABRT, self._before)
            signal.raise_signal(signal.SIGABRT)
            return
        if not self._has_aborted:
            self._has_aborted = True
            # The process must end even if Python cannot, for example because it waits for this thread.
            signal.alarm(_LAST_RESORT_S)
            atexit.register(_leave)
            self._tell()
        while True:
            time.sleep(3600)


def _leave() -> None:
    """End the process at once: Python's normal exit would wait for the thread that never returns."""
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(1)
