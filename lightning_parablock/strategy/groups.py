"""The collectives of a run: over the default process group of fixed ranks, or over sites that come and go."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lightning_parablock.lightning_private.processes import reduce_over
from lightning_parablock.meeting.default_group import broadcast_in_group, gather_in_group

T = TypeVar("T")


class Guarded(Protocol):
    """The ranks whose collectives these are."""

    def guard(self, what: str, collective: Callable[[], T], detail: str = "") -> T:
        """Run a collective: refuse it where not all come, notice lost peers, say where an error was noticed.

        Args:
            what: Its name, for messages.
            collective: The operation.
            detail: What else must be the same everywhere, in words.
        """
        ...

    @property
    def process_group_backend(self) -> str:
        """ "gloo" or "nccl"."""
        ...

    @property
    def root_device(self) -> torch.device:
        """The model's device."""
        ...


class Group(ABC):
    """What all of those that take part in a collective do together; results are in the order of their numbers."""

    @abstractmethod
    def barrier(self, name: str) -> None:
        """Wait for all."""

    @abstractmethod
    def broadcast(self, value: T, src: int) -> T:
        """The value of number ``src``, everywhere."""

    @abstractmethod
    def reduce(self, tensor: Tensor, group: Any, reduce_op: Any) -> Tensor:
        """The sum, mean, minimum or maximum of a tensor over all, or over a group that the user has made."""

    @abstractmethod
    def all_gather(self, tensor: Tensor, group: Any, sync_grads: bool) -> Tensor:
        """The tensors of all, stacked along a new first dimension."""

    @abstractmethod
    def gather_objects(self, value: T, where: str) -> list[T]:
        """The value of each; ``where`` names the caller: values of different purposes must not be exchanged."""

    @abstractmethod
    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        """Overwrite tensors with those of number 0."""


class FixedGroup(Group):
    """The default process group.

    Args:
        ranks: The ranks of the group.
        gather: Gathers tensors as Lightning does; takes the arguments of :meth:`all_gather`.
    """

    def __init__(self, ranks: Guarded, gather: Callable[[Tensor, Any, bool], Tensor]) -> None:
        self._ranks, self._gather = ranks, gather

    @override
    def barrier(self, name: str) -> None:
        if dist.is_initialized():
            devices = [self._ranks.root_device.index] if self._ranks.process_group_backend == "nccl" else None
            self._ranks.guard(f"barrier {name}".strip(), lambda: dist.barrier(device_ids=devices))

    @override
    def broadcast(self, value: T, src: int) -> T:
        if not dist.is_initialized():
            return value
        return self._ranks.guard("broadcast", lambda: broadcast_in_group(value, src), f"from rank {src}")

    @override
    def reduce(self, tensor: Tensor, group: Any, reduce_op: Any) -> Tensor:
        def reduce() -> Tensor:
            return reduce_over(tensor, group, reduce_op)

        if not is_default(group):
            return reduce()
        return self._ranks.guard("reduce", reduce, f"({reduce_op}) of {kind_of(tensor)}")

    @override
    def all_gather(self, tensor: Tensor, group: Any, sync_grads: bool) -> Tensor:
        if sync_grads:  # autograd belongs to the thread that calls
            self._ranks.guard("all_gather", lambda: None, f"with gradients of {kind_of(tensor)}")
            return self._gather(tensor, group, sync_grads)
        if not is_default(group):
            return self._gather(tensor, group, False)
        return self._ranks.guard("all_gather", lambda: self._gather(tensor, group, False), f"of {kind_of(tensor)}")

    @override
    def gather_objects(self, value: T, where: str) -> list[T]:
        return self._ranks.guard("gather", lambda: gather_in_group(value, f"gather in {where}"), f"in {where}")

    @override
    def broadcast_tensors(self, tensors: Sequence[Tensor], what: str) -> None:
        def broadcast() -> None:
            for tensor in tensors:
                dist.broadcast(tensor, src=0)

        self._ranks.guard(f"broadcast of {what}", broadcast)


def is_default(group: Any) -> bool:
    """Whether a collective runs on the default group; groups that the user has made are the user's responsibility."""
    return group is None or group is dist.group.WORLD


def kind_of(tensor: object) -> str:
    """Type and shape of a tensor in words; the type of anything else."""
    return f"{tensor.dtype} {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else type(tensor).__name__
