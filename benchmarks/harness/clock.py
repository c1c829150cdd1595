"""How long work takes, what a GPU was given included."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def settle() -> None:
    """Let a GPU finish what it was given: that belongs to the step that gave it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds that the work takes until a GPU, too, is done with it."""
    start_s = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start_s
