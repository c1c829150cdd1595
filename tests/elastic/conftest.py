"""Lighthouses and processes that end with the test."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.elastic.lighthouse_server import LighthouseServer
from tests.elastic.live_sites import made
from tests.support.threads import on_one_thread

SILENCE_S = 3.0
"""Longer than a busy machine makes a thread wait."""


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    """A thread of this package that outlives its test would make a later command in this process exit at once."""
    yield
    ends_s = time.monotonic() + 20 * SILENCE_S
    while (left := _threads()) and time.monotonic() < ends_s:
        time.sleep(0.02)
    sites = made[:]
    made.clear()
    if left:
        for site in sites:  # those of a test that has failed must not spoil the later ones of this process
            site.kill()
    assert not left


def _threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("parablock-")]


@pytest.fixture
def one_thread() -> Iterator[None]:
    with on_one_thread():
        yield


@pytest.fixture
def server() -> Iterator[LighthouseServer]:
    server = LighthouseServer("127.0.0.1", 0, SILENCE_S)
    yield server
    server.close()


@pytest.fixture
def arbiter() -> Iterator[Callable[..., Lighthouse]]:
    """Makes arbiters of this process for a port."""
    made: list[Lighthouse] = []

    def make(port: int, silence_s: float = SILENCE_S) -> Lighthouse:
        made.append(Lighthouse(f"127.0.0.1:{port}", silence_s))
        return made[-1]

    yield make
    for each in made:
        each.close()


Process = subprocess.Popen[str]


@pytest.fixture
def started() -> Iterator[Callable[..., Process]]:
    """Starts Python programs; what they print is read line by line."""
    processes: list[Process] = []

    def start(*words: str) -> Process:
        command = [sys.executable, *words]
        processes.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=Path(__file__).parents[2])
        )
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()
