"""The default process group. Nothing here notices a lost rank before the group's own timeout.

Within a run use the strategy's collectives, which run these under the watch. Without it are the probe, strategies of
other packages, and ranks that meet again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed as dist

from lightning_parablock.meeting.devices import on_listeners

T = TypeVar("T")


def is_open() -> bool:
    """Whether this process has joined a default process group."""
    return dist.is_available() and dist.is_initialized()


def own_rank() -> int:
    """This process's rank in the group, which must be open."""
    return dist.get_rank()


def gather_objects(value: T) -> list[T]:
    """The value of each rank, in rank order, on every rank; collective. ``[value]`` if no group is open."""
    return gather_in_group(value) if is_open() else [value]


def gather_in_group(value: T) -> list[T]:
    """The same, over a group that must be open."""
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, value)
    return gathered


@contextlib.contextmanager
def opened_default_group(limit_s: float) -> Generator[int]:
    """Open a gloo group as the environment describes it, and release it at the end; yields the number of ranks.

    Args:
        limit_s: Time limit in seconds for the ranks to meet, and for each collective.

    Raises:
        RuntimeError: the ranks did not meet, or one was lost; raised by torch.
    """
    try:
        with on_listeners():
            dist.init_process_group("gloo", timeout=timedelta(seconds=limit_s))
        yield dist.get_world_size()
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
