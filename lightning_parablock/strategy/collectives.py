"""Lightning's collectives over the ranks of a run, none of which outlives a lost rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.distributed.constants import default_pg_timeout as DEFAULT_TIMEOUT
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.agreement import refuse_differences
from lightning_parablock.lightning_private.processes import LaunchingStrategy, default_backend
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.membership.watch import Watch
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.groups import FixedGroup, Group
from lightning_parablock.transport.link_probe import LinkSample, probe_links
from lightning_parablock.transport.opening import Federation

T = TypeVar("T")


class GuardedCollectives(LaunchingStrategy):
    """Runs every collective of the default group under the watch over the other ranks.

    Args:
        process_group_backend: "gloo", "nccl", or None for the device's own.
        timeout: Limit of the default process group.
        **lightning: The arguments of Lightning's ParallelStrategy.

    Attributes:
        has_failed: Whether this rank has failed, so that the others no longer answer its collectives.
    """

    is_distributed = True
    """Without it Lightning ignores ``sync_dist=True``."""

    def __init__(self, *, process_group_backend: str | None, timeout: timedelta | None, **lightning: Any) -> None:
        super().__init__(**lightning)
        self._process_group_backend = process_group_backend
        self._timeout = timeout
        self._federation: Federation | None = None
        self.has_failed = False

    # --- facts --------------------------------------------------------------------------------------------------------

    @property
    @override
    def root_device(self) -> torch.device:
        assert self.parallel_devices is not None
        if self.local_rank >= self.num_processes:
            raise ConfigurationError(
                f"this is process {self.local_rank} of its machine, numbered from 0, but the Trainer has "
                f"devices={self.num_processes}; set devices to the number of processes on each machine"
            )
        return self.parallel_devices[self.local_rank]

    @property
    def num_processes(self) -> int:
        """Number of processes on this node."""
        return len(self.parallel_devices) if self.parallel_devices is not None else 0

    @property
    def process_group_backend(self) -> str:
        """ "gloo" or "nccl"."""
        return self._process_group_backend or default_backend(self.root_device)

    @property
    def federation(self) -> Federation:
        """The ranks that have met, and the watch over them."""
        assert self._federation is not None, "the ranks have not met"
        return self._federation

    @property
    def watch(self) -> Watch | None:
        """The watch over the other ranks; None where there are none, or before they have met."""
        return self._federation.watch if self._federation is not None else None

    @property
    def stop_point(self) -> StopPoint:
        """Where the ranks agree on a batch at which to stop."""
        return self.watch.stop_point if self.watch is not None else StopPoint((), lambda _: None)

    def has_lost(self, rank: int) -> bool:
        """Whether another rank is known to be lost."""
        return self.watch is not None and self.watch.peers.has_lost(rank)

    def describe(self, rank: int) -> str:
        """A rank in words, for messages."""
        return self._federation.membership.describe(rank) if self._federation is not None else f"rank {rank}"

    # --- collectives --------------------------------------------------------------------------------------------------

    @property
    def is_alone(self) -> bool:
        """Whether no other rank takes part in collectives, now or later."""
        return self.world_size == 1

    @property
    def group(self) -> Group:
        """Runs the collectives, all of which this rank may enter."""
        return FixedGroup(self, super().all_gather)

    @override
    def barrier(self, name: str | None = None) -> None:
        if not self.is_alone and not self.has_failed:
            self.group.barrier(name or "")

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        return obj if self.is_alone or self.has_failed else self.group.broadcast(obj, src)

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if not isinstance(tensor, Tensor) or self.is_alone or self.has_failed:
            return tensor
        if not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            # Lightning divides summed metrics by the mean of the clients' sample counts, which is no whole number.
            tensor = tensor.float()
        return self.group.reduce(tensor, group, reduce_op)

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        return self.group.all_gather(tensor, group, sync_grads)

    def guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        """Run a collective of the default group, which either all ranks enter or none.

        Args:
            what: Its name, for messages.
            collective: The operation.
            detail: What else must be the same on all ranks, in words.

        Raises:
            PeerError: a rank was lost, was silent or late for too long, or is in another collective.
        """
        watch = self.watch
        if watch is None:
            return collective()
        return watch.guard(what, lambda: self._on_own_device(collective), limit_s=self._limit_s, detail=detail)

    def _on_own_device(self, collective: Callable[[], T]) -> T:
        # The current CUDA device is a thread's own, and the guard runs the collective on a thread of its own.
        if self.root_device.type != "cuda":
            return collective()
        with torch.cuda.device(self.root_device):
            return collective()

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order; collective."""
        return [value] if self.is_alone else self.group.gather_objects(value, _caller_name())

    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        """Overwrite tensors with those of rank 0; collective.

        Args:
            tensors: Of the same shapes and types on every rank.
            what: Names them in messages.
        """
        self.group.broadcast_tensors(tensors, what)

    def time_links(self, settings: Settings) -> LinkSample | None:
        """A timed exchange in the pattern of the run's topology, None where there is one rank; collective."""
        if self.world_size == 1:
            return None
        backend = self.process_group_backend
        probe = partial(
            probe_links,
            settings.topology,
            backend=backend,
            device=self.root_device if backend == "nccl" else torch.device("cpu"),
            chunk_bytes=settings.chunk_bytes,
            timeout_s=settings.exchange_timeout_s,
        )
        return self.guard("probe of the links", probe)

    def refuse_differences(self, facts: Mapping[str, str]) -> None:
        """Raise the same ConfigurationError on every rank where these facts are not the same on all; collective."""
        refuse_differences(self.gather_objects(dict(facts)), [self.describe(r) for r in range(self.world_size)])

    @property
    def _limit_s(self) -> float:
        return (self._timeout or DEFAULT_TIMEOUT).total_seconds()


def _caller_name() -> str:
    """Name of the function that calls ``gather_objects``: ranks must not exchange values of different purposes."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code.co_name == "gather_objects" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_qualname.replace(".<locals>", "")
