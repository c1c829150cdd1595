"""The dedicated process group of one backend: messages are sent by ``isend`` and received by ``irecv``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lightning_parablock.meeting.devices import open_group
from lightning_parablock.transport.chunks import Kind


@dataclass(frozen=True)
class Transfer:
    """One message to or from one rank; the buffer belongs to the wire until the ticket's wait has returned."""

    message: Tensor
    rank: int
    kind: Kind


class Ticket(ABC):
    """A posted transfer."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer

    @abstractmethod
    def wait(self, limit_s: float) -> None:
        """Block until the transfer is complete; raises what the backend raises, or TimeoutError at the limit."""


class Wire(ABC):
    """A process group that only the communication threads use.

    Attributes:
        device: Device of the message buffers.
        posts_early: Whether receives may be posted long before their sends, from several threads; if not, both sides
            must post matching batches in one order.
    """

    device: torch.device
    posts_early: bool

    @abstractmethod
    def new_buffer(self, size_bytes: int) -> Tensor:
        """Memory for messages, uint8, shape (size_bytes,)."""

    @abstractmethod
    def post(self, receives: Sequence[Transfer], sends: Sequence[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        """Start transfers, all receives before the first send; messages must not be changed until they are complete."""

    @abstractmethod
    def close(self) -> None:
        """Release the group; only when nothing is pending."""


class GlooTicket(Ticket):
    """A transfer of gloo.

    Args:
        transfer: The message.
        work: What gloo has started.
    """

    def __init__(self, transfer: Transfer, work: dist.Work) -> None:
        super().__init__(transfer)
        self._work = work  # dropping the work would cancel the transfer silently

    @override
    def wait(self, limit_s: float) -> None:
        self._work.wait(timedelta(seconds=limit_s))


class GlooWire(Wire):
    """CPU buffers over TCP. Data moves from the moment both sides have posted, whether or not a thread waits.

    Args:
        timeout_s: Limit for the group's own waits.
        pins_memory: Whether buffers are page-locked, so that a GPU's copy engine reaches them.
    """

    device = torch.device("cpu")
    posts_early = True

    def __init__(self, timeout_s: float, *, pins_memory: bool = False) -> None:
        self._pins_memory = pins_memory
        self._group = open_group("gloo", timeout_s)

    @override
    def new_buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pins_memory)

    @override
    def post(self, receives: Sequence[Transfer], sends: Sequence[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        incoming = [self._start(dist.irecv, transfer) for transfer in receives]
        return incoming, [self._start(dist.isend, transfer) for transfer in sends]

    @override
    def close(self) -> None:
        dist.destroy_process_group(self._group)

    def _start(self, verb: Callable[..., dist.Work | None], transfer: Transfer) -> Ticket:
        work = verb(transfer.message, transfer.rank, group=self._group, tag=int(transfer.kind))
        assert work is not None, "this rank is not in the dedicated group"
        return GlooTicket(transfer, work)


class _NcclTicket(Ticket):
    def __init__(self, transfer: Transfer, done: torch.cuda.Event) -> None:
        super().__init__(transfer)
        self._done = done

    @override
    def wait(self, limit_s: float) -> None:
        deadline_s = time.monotonic() + limit_s
        while not self._done.query():
            if time.monotonic() > deadline_s:
                raise TimeoutError(f"no message from or to rank {self.transfer.rank} within {limit_s:g} s")
            time.sleep(0.0005)


class NcclWire(Wire):
    """GPU buffers over NCCL. Batches are grouped, since NCCL matches by order alone.

    Not run on the project's machines, which have no GPU: see docs/assumptions-and-limits.md.

    Args:
        device: The model's device.
        timeout_s: Limit for the group's own waits.
    """

    posts_early = False

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self.device = device
        self._group = open_group("nccl", timeout_s)

    @override
    def new_buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, device=self.device)

    @override
    def post(self, receives: Sequence[Transfer], sends: Sequence[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        operations = [dist.P2POp(dist.irecv, t.message, t.rank, self._group) for t in receives]
        operations += [dist.P2POp(dist.isend, t.message, t.rank, self._group) for t in sends]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()  # orders the thread's stream after the transfer; does not block the thread
        done = torch.cuda.Event()
        done.record(torch.cuda.current_stream(self.device))
        return [_NcclTicket(t, done) for t in receives], [_NcclTicket(t, done) for t in sends]

    @override
    def close(self) -> None:
        dist.destroy_process_group(self._group)
