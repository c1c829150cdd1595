"""Scenarios for test_ranks.py, most of which fail, without a process group."""

from __future__ import annotations

import os
import threading
import time

from tests.support.here import RANK, SCRATCH
from tests.support.scenarios import Scenario, after, spoiling


def holds() -> None:
    print("of process", os.getpid())


def one_is_wrong() -> None:
    assert RANK == 0, "wrong on one rank"


def one_never_ends() -> None:
    print("waiting", flush=True)
    threading.Event().wait(0 if RANK == 0 else None)


def one_dies() -> None:
    if RANK == 1:
        os._exit(7)


def one_leaves() -> None:
    if RANK == 1:
        raise SystemExit(0)


def leaves_a_file() -> None:
    (SCRATCH / f"left{RANK}").touch()


@after("leaves a file")
def finds_it() -> None:
    assert (SCRATCH / f"left{RANK}").exists()


@after("one is wrong")
def needs_what_failed() -> None:
    print("not reached")


@spoiling
def spoils() -> None:
    print("of process", os.getpid())


def leaves_a_thread() -> None:
    threading.Thread(target=time.sleep, args=(2.0,), name="parablock-left").start()


SCENARIOS: dict[str, Scenario] = {
    "holds": holds,
    "one is wrong": one_is_wrong,
    "one never ends": one_never_ends,
    "one dies": one_dies,
    "one leaves": one_leaves,
    "leaves a file": leaves_a_file,
    "finds it": finds_it,
    "needs what failed": needs_what_failed,
    "spoils": spoils,
    "leaves a thread": leaves_a_thread,
}
