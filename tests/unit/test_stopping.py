"""What one process does with the signals it gets, before any batch is over."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_parablock import stopping
from lightning_parablock.stopping import Stopping
from lightning_parablock.transport.stop_point import StopPoint


@pytest.fixture
def alone() -> Iterator[Stopping]:
    nothing: Any = None
    made = Stopping(nothing, nothing, StopPoint((), lambda _: None), lambda: None)
    before = signal.getsignal(signal.SIGINT)
    made.open()
    yield made
    made.close()
    assert signal.getsignal(signal.SIGINT) is before
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer) and thread.is_alive()]


def test_ctrl_c_again_ends_at_once_and_a_launchers_copy_of_it_does_not(
    alone: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)  # the same one, passed on
    monkeypatch.setattr(stopping, "_SAME_S", 0.0)
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_after_the_limit_the_process_ends_in_the_middle_of_what_it_does(
    alone: Stopping, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(stopping.LIMITS_S, signal.SIGINT, 0.2)
    signal.raise_signal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt):
        threading.Event().wait(60)
