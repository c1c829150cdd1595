"""The scenarios of one rank of a launch: functions that assert."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping

import torch


def run_scenarios(scenarios: Mapping[str, Callable[[], object]]) -> None:
    """Run every scenario in turn, on one thread, and print the name of each that holds."""
    torch.set_num_threads(1)
    for name, scenario in scenarios.items():
        scenario()
        print("HOLDS", name, flush=True)
    # A thread that is left may abort the process on its way out, exit code -6.
    assert [thread.name for thread in threading.enumerate() if thread.name.startswith("parablock")] == []
