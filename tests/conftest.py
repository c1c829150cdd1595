"""What concerns every process in which tests run."""

from __future__ import annotations

import gc
import signal
import sys
import threading
import time
from collections.abc import Generator, Iterator
from typing import NoReturn

import hypothesis
import pytest

from lightning_parablock.system import exit_codes
from lightning_parablock.system.importing import quick_imports

THREADS_END_S = 60.0
"""Bounds the wait for threads that are about to end, on a busy machine."""


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """A process group of torch prefixes the tracebacks of its process with the rank, also after it has ended."""
    hook = sys.excepthook
    yield
    sys.excepthook = hook


@pytest.fixture(autouse=True)
def ctrl_c_still_interrupts() -> Iterator[None]:
    """Lightning lets a process ignore Ctrl-C once its fit was interrupted; what later tests start would inherit it."""
    handler = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, handler)


@pytest.fixture(autouse=True, scope="module")
def no_thread_is_left_by_a_file() -> Iterator[None]:
    """A thread of this package that is left would make a later command in this process exit at once."""
    before = set(threading.enumerate())
    yield
    ends_s = time.monotonic() + THREADS_END_S
    while left := [t.name for t in set(threading.enumerate()) - before if t.name.startswith("parablock-")]:
        assert time.monotonic() < ends_s, left
        time.sleep(0.02)


def pytest_configure() -> None:
    # A shell lets what it starts in the background ignore Ctrl-C, and the processes of tests would inherit that.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    # An example that takes long says nothing about the code: machines are busy.
    hypothesis.settings.register_profile("untimed", deadline=None)
    hypothesis.settings.load_profile("untimed")
    # A command that fails exits at once where an earlier test has left a thread; the other tests must still run.
    exit_codes._leave = _fail_instead


def _fail_instead(code: int) -> NoReturn:
    raise AssertionError(f"exits at once with {code}, because of {[thread.name for thread in threading.enumerate()]}")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Collecting tests imports their files."""
    with quick_imports():
        return (yield)


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later garbage collection, of which each fit makes one."""
    gc.collect()
    gc.freeze()
