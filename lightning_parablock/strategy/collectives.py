"""Lightning's collectives over the ranks of a run, none of which outlives a lost rank."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from functools import partial
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.constants import default_pg_timeout as DEFAULT_TIMEOUT
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.agreement import refuse_differences
from lightning_parablock.lightning_private.processes import LaunchingStrategy, default_backend, reduce_over
from lightning_parablock.meeting.default_group import gather_in_group
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.membership.watch import Watch
from lightning_parablock.settings import Settings
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

    @override
    def barrier(self, name: str | None = None) -> None:
        if self.world_size > 1 and dist.is_initialized() and not self.has_failed:
            devices = [self.root_device.index] if self.process_group_backend == "nccl" else None
            self.guard(f"barrier {name or ''}".strip(), lambda: dist.barrier(device_ids=devices))

    @override
    def broadcast(self, obj: T, src: int = 0) -> T:
        if self.world_size == 1 or not dist.is_initialized() or self.has_failed:
            return obj
        objects = [obj]
        self.guard("broadcast", lambda: dist.broadcast_object_list(objects, src), f"from rank {src}")
        return objects[0]

    @override
    def reduce(self, tensor: Any, group: Any = None, reduce_op: Any = "mean") -> Any:
        if not isinstance(tensor, Tensor) or self.world_size == 1 or self.has_failed:
            return tensor
        if not tensor.is_floating_point() and reduce_op in ("mean", "avg"):
            # Lightning divides summed metrics by the mean of the clients' sample counts, which is no whole number.
            tensor = tensor.float()

        def reduce() -> Tensor:
            return reduce_over(tensor, group, reduce_op)

        if not _is_default(group):
            return reduce()
        return self.guard("reduce", reduce, f"({reduce_op}) of {_kind_of(tensor)}")

    @override
    def all_gather(self, tensor: Tensor, group: Any = None, sync_grads: bool = False) -> Tensor:
        gather = super().all_gather
        if sync_grads:  # autograd belongs to the thread that calls
            self.guard("all_gather", lambda: None, f"with gradients of {_kind_of(tensor)}")
            return gather(tensor, group, sync_grads)
        if not _is_default(group):
            return gather(tensor, group)
        return self.guard("all_gather", lambda: gather(tensor, group), f"of {_kind_of(tensor)}")

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
        if self.world_size == 1:
            return [value]
        return self.guard("gather", lambda: gather_in_group(value), f"in {_caller_name()}")

    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        """Overwrite tensors with those of rank 0; collective.

        Args:
            tensors: Of the same shapes and types on every rank.
            what: Names them in messages.
        """

        def broadcast() -> None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

        self.guard(f"broadcast of {what}", broadcast)

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
        members = self.federation.membership
        refuse_differences(self.gather_objects(dict(facts)), [members.describe(r) for r in range(members.n_ranks)])

    @property
    def _limit_s(self) -> float:
        return (self._timeout or DEFAULT_TIMEOUT).total_seconds()


def _is_default(group: Any) -> bool:
    """Whether a collective runs on the default group; groups that the user has made are the user's responsibility."""
    return group is None or group is dist.group.WORLD


def _kind_of(tensor: object) -> str:
    return f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__


def _caller_name() -> str:
    """Name of the function that calls ``gather_objects``: ranks must not exchange values of different purposes."""
    frame = sys._getframe(2)  # pyright: ignore[reportPrivateUsage]
    while frame.f_code.co_name == "gather_objects" and frame.f_back is not None:
        frame = frame.f_back
    return frame.f_code.co_qualname.replace(".<locals>", "")
