"""What a rank does with a scenario file: a module of functions that every rank runs and that assert.

The file's ``SCENARIOS`` are names and functions, each of them a test case (see ranks.py). If it has a function
``prepare``, that is called first. ``LEAVES_THREADS`` is True where fits fail, whose threads may stay. ``ALONE`` are
scenarios that end with an error that no process survives: ``python -m tests.support.scenarios FILE NAME`` runs one, as
every rank of a launch of its own does.
"""

from __future__ import annotations

import faulthandler
import importlib
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any

import torch

Scenario = Callable[[], object]
DUMP_STACKS = signal.SIGUSR2
"""Makes a rank print the stacks of all of its threads."""


def after(*names: str) -> Callable[[Scenario], Scenario]:
    """Mark a scenario that finds what others have left: they are run before it."""
    return _marked(needs=names)


def spoiling(scenario: Scenario) -> Scenario:
    """Mark a scenario after which the ranks cannot meet any more: those that follow get new ones."""
    return _marked(spoils=True)(scenario)


def _marked(**marks: Any) -> Callable[[Scenario], Scenario]:
    def mark(scenario: Scenario) -> Scenario:
        vars(scenario).update(marks)  # pyright: ignore[reportUnknownArgumentType]
        return scenario

    return mark


def serve(file: str, commands: Connection) -> None:
    """Run the scenarios whose names come, and answer each with None or a traceback; end on None."""
    faulthandler.register(DUMP_STACKS, all_threads=True)
    found: ModuleType | None = None
    while (name := commands.recv()) is not None:
        failure = None
        try:
            found = found or _prepared(file)
            found.SCENARIOS[name]()
        except BaseException:  # SystemExit, too: it must not pass for an orderly end
            failure = traceback.format_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        commands.send(failure)
    # A thread that is left may abort the process on its way out, exit code -6.
    if not getattr(found, "LEAVES_THREADS", False):
        left = [thread.name for thread in threading.enumerate() if thread.name.startswith("parablock")]
        assert left == [], left


def _prepared(file: str) -> ModuleType:
    torch.set_num_threads(1)
    found = importlib.import_module(file)
    getattr(found, "prepare", lambda: None)()
    return found


if __name__ == "__main__":
    _prepared(sys.argv[1]).ALONE[sys.argv[2]]()
