"""How long work takes, including what it has queued on a GPU."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch


def settle() -> None:
    """Wait until the GPU has finished its queued work, which belongs to the step that queued it."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def timed(work: Callable[[], Any]) -> float:
    """Seconds until the work, including what it has queued on a GPU, is done."""
    start_s = time.perf_counter()
    work()
    settle()
    return time.perf_counter() - start_s
