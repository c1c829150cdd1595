"""The handler of SIGABRT outlives whoever installed it for as long as C may call it."""

from __future__ import annotations

import gc
import subprocess
import sys

from lightning_parablock.membership import aborts
from tests.support.launch import ROOT

_FORGOTTEN = """
import ctypes, gc, threading, time
from lightning_parablock.membership.aborts import Aborts

told = threading.Event()
aborts = Aborts(told.set)
del aborts
gc.collect()
libc = ctypes.CDLL(None)
start = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p)
thread, abort = ctypes.c_ulong(), ctypes.cast(libc.abort, ctypes.c_void_p)
libc.pthread_create(ctypes.byref(thread), None, abort, None)  # a thread that Python does not know
print("told" if told.wait(20) else "not told", flush=True)
"""


def test_an_abort_is_heard_after_the_one_who_listens_has_been_collected() -> None:
    done = subprocess.run([sys.executable, "-c", _FORGOTTEN], cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.stdout == "told\n", done.stderr
    assert done.returncode == 1


def test_a_listener_that_is_closed_is_not_kept() -> None:
    before = list(aborts._installed)
    one = aborts.Aborts(gc.collect)
    assert len(aborts._installed) == len(before) + 1
    one.close()
    assert aborts._installed == before
