"""What concerns every process in which tests run."""

from __future__ import annotations

import gc
import signal
import sys
from collections.abc import Iterator

import pytest


@pytest.fixture(autouse=True)
def plain_tracebacks() -> Iterator[None]:
    """A process group of torch prefixes the tracebacks of its process with the rank, also after it has ended."""
    hook = sys.excepthook
    yield
    sys.excepthook = hook


def pytest_configure() -> None:
    """A shell lets what it starts in the background ignore Ctrl-C, and the processes of tests would inherit that."""
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later garbage collection, of which each fit makes one."""
    gc.collect()
    gc.freeze()
