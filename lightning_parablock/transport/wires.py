"""The dedicated process group of one backend: messages go out by ``isend``, come in by ``irecv``."""

from __future__ import annotations

import contextlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from typing_extensions import override

from lightning_parablock.transport.chunks import Kind


@dataclass(frozen=True)
class Transfer:
    """One message to or from one rank; the buffer is the wire's until the ticket's wait has returned."""

    message: Tensor
    rank: int
    kind: Kind


class Ticket(ABC):
    """A posted transfer."""

    def __init__(self, transfer: Transfer) -> None:
        self.transfer = transfer

    @abstractmethod
    def wait(self, limit_s: float) -> None:
        """Block until the transfer is complete; raises whatever the backend raises, TimeoutError at the limit."""


class Wire(ABC):
    """A process group that only the communication thread uses.

    Attributes:
        device: Where message buffers live.
        posts_early: Whether receives may be posted long before their sends; else both sides must post matching batches.
    """

    device: torch.device
    posts_early: bool

    @abstractmethod
    def post(self, receives: Sequence[Transfer], sends: Iterable[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        """Start transfers, all receives before the first send; ``sends`` may fill its buffers as it is iterated."""

    def from_training_thread(self) -> object:
        """Taken on the training thread at submission; handed to :meth:`on_communication_thread`."""
        return None

    @contextlib.contextmanager
    def on_communication_thread(self, taken: object) -> Generator[None]:
        """Surrounds an exchange on the communication thread."""
        yield

    def hand_over(self, commit: Tensor, taken: object) -> Tensor:
        """Make a tensor of the communication thread safe to use and to free on the training thread."""
        return commit

    @abstractmethod
    def close(self) -> None:
        """Release the group; only when nothing is pending."""


def open_group(backend: str, timeout_s: float) -> dist.ProcessGroup:
    """A new group over all ranks, for one purpose; collective."""
    group = dist.new_group(backend=backend, timeout=timedelta(seconds=timeout_s))
    assert isinstance(group, dist.ProcessGroup), "every rank is a member"
    return group


class _GlooTicket(Ticket):
    def __init__(self, transfer: Transfer, work: dist.Work) -> None:
        super().__init__(transfer)
        self._work = work  # dropping the work would cancel the transfer silently

    @override
    def wait(self, limit_s: float) -> None:
        self._work.wait(timedelta(seconds=limit_s))


class GlooWire(Wire):
    """CPU buffers over TCP. Data moves without anybody waiting, from the moment both sides have posted."""

    device = torch.device("cpu")
    posts_early = True

    def __init__(self, timeout_s: float) -> None:
        self._group = open_group("gloo", timeout_s)

    @override
    def post(self, receives: Sequence[Transfer], sends: Iterable[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        incoming = [self._start(dist.irecv, transfer) for transfer in receives]
        return incoming, [self._start(dist.isend, transfer) for transfer in sends]

    @override
    def close(self) -> None:
        dist.destroy_process_group(self._group)

    def _start(self, verb: Callable[..., dist.Work | None], transfer: Transfer) -> Ticket:
        work = verb(transfer.message, transfer.rank, group=self._group, tag=int(transfer.kind))
        assert work is not None, "this rank is not in the dedicated group"
        return _GlooTicket(transfer, work)


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


@dataclass(frozen=True)
class _Submitted:
    """Where the training thread's stream stood at a submission."""

    event: torch.cuda.Event
    stream: torch.cuda.Stream


class NcclWire(Wire):
    """GPU buffers over NCCL, on a stream of its own. Batches are grouped, since NCCL matches by order alone.

    Not run on the project's machines, which have no GPU: see docs/assumptions-and-limits.md.
    """

    posts_early = False

    def __init__(self, device: torch.device, timeout_s: float) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device)
        self._group = open_group("nccl", timeout_s)

    @override
    def post(self, receives: Sequence[Transfer], sends: Iterable[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        outgoing = list(sends)
        operations = [dist.P2POp(dist.irecv, t.message, t.rank, self._group) for t in receives]
        operations += [dist.P2POp(dist.isend, t.message, t.rank, self._group) for t in outgoing]
        for work in dist.batch_isend_irecv(operations) if operations else []:
            work.wait()  # orders this stream after the transfer; does not block the thread
        done = torch.cuda.Event()
        done.record(self._stream)
        return [_NcclTicket(t, done) for t in receives], [_NcclTicket(t, done) for t in outgoing]

    @override
    def from_training_thread(self) -> _Submitted:
        stream = torch.cuda.current_stream(self.device)
        event = torch.cuda.Event()
        event.record(stream)
        return _Submitted(event, stream)

    @override
    @contextlib.contextmanager
    def on_communication_thread(self, taken: object) -> Generator[None]:
        assert isinstance(taken, _Submitted)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._stream.wait_event(taken.event)
            yield
            self._stream.synchronize()

    @override
    def hand_over(self, commit: Tensor, taken: object) -> Tensor:
        assert isinstance(taken, _Submitted)
        # Else its memory could be given to the next exchange while the training stream still reads it.
        commit.record_stream(taken.stream)
        return commit

    @override
    def close(self) -> None:
        dist.destroy_process_group(self._group)
