"""A bounded number of messages under way, whose buffers are reused."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from lightning_parablock.transport.chunks import HEADER_BYTES, WINDOW, Header, Kind
from lightning_parablock.transport.wires import Ticket, Transfer, Wire

Finish = Callable[[Ticket], None]
"""Waits for a transfer; raises the error to report if it fails."""


@dataclass
class _Slot:
    """A message buffer and its transfers that are still under way."""

    buffer: Tensor | None = None
    tickets: list[Ticket] = field(default_factory=list[Ticket])

    def message(self, payload_bytes: int, wire: Wire) -> Tensor:
        size = HEADER_BYTES + payload_bytes
        if self.buffer is None or self.buffer.numel() < size:
            self.buffer = wire.new_buffer(size)
        return self.buffer[:size]


class SendWindow:
    """The messages that one thread sends: a buffer is reused only once its last transfers are complete.

    Args:
        wire: Carries them.
        finish: See :data:`Finish`.
        n_slots: Number of buffers.
    """

    def __init__(self, wire: Wire, finish: Finish, n_slots: int) -> None:
        self._wire, self._finish = wire, finish
        self._slots = [_Slot() for _ in range(n_slots)]
        self._next = 0

    def message(self, payload_bytes: int) -> Tensor:
        """A buffer for the next message, shape (64 + payload_bytes,), uint8; waits until its last use is complete."""
        slot = self._slots[self._next]
        self._drain(slot)
        return slot.message(payload_bytes, self._wire)

    def send(self, message: Tensor, ranks: Iterable[int], kind: Kind) -> None:
        """Send the buffer that :meth:`message` returned to some ranks."""
        slot = self._slots[self._next]
        self._next = (self._next + 1) % len(self._slots)
        slot.tickets = self._wire.post([], [Transfer(message, rank, kind) for rank in ranks])[1]

    def drain(self) -> None:
        """Wait until everything has left."""
        for slot in self._slots:
            self._drain(slot)

    def _drain(self, slot: _Slot) -> None:
        tickets, slot.tickets = slot.tickets, []
        for ticket in tickets:
            self._finish(ticket)


@dataclass(frozen=True)
class Expected:
    """A message that is expected.

    Attributes:
        rank: Its sender.
        header: The header it must have.
        part: Which of the scalars that the exchange carries.
    """

    rank: int
    header: Header
    part: slice


class ReceiveWindow:
    """The messages that one thread receives in an exchange, step by step; receives are posted WINDOW steps ahead.

    Args:
        wire: Carries them.
        finish: See :data:`Finish`.
    """

    def __init__(self, wire: Wire, finish: Finish) -> None:
        self._wire, self._finish = wire, finish
        self._slots: dict[tuple[int, int], _Slot] = {}
        self._steps: Sequence[Sequence[Expected]] = []
        self._awaited: Expected | None = None

    def begin(self, steps: Sequence[Sequence[Expected]]) -> None:
        """Post the first receives of an exchange."""
        self._steps = steps
        for step in range(min(WINDOW, len(steps))):
            self._post(step)

    @property
    def n_steps(self) -> int:
        """Steps of the exchange."""
        return len(self._steps)

    def arrived(self, step: int) -> list[tuple[Expected, Tensor]]:
        """Wait for the messages of a step; they may be read until :meth:`release`."""
        messages: list[tuple[Expected, Tensor]] = []
        for index, expected in enumerate(self._steps[step]):
            (ticket,) = self._slots[step % WINDOW, index].tickets
            self._awaited = expected
            self._finish(ticket)
            messages.append((expected, ticket.transfer.message))
        self._awaited = None
        return messages

    def awaited(self) -> list[Expected]:
        """The message that :meth:`arrived` is waiting for, if any."""
        awaited = self._awaited
        return [] if awaited is None else [awaited]

    def release(self, step: int) -> None:
        """The messages of a step have been read: their buffers may be reused."""
        if step + WINDOW < len(self._steps):
            self._post(step + WINDOW)

    def _post(self, step: int) -> None:
        for index, expected in enumerate(self._steps[step]):
            slot = self._slots.setdefault((step % WINDOW, index), _Slot())
            message = slot.message(expected.header.length_bytes, self._wire)
            slot.tickets = self._wire.post([Transfer(message, expected.rank, expected.header.kind)], [])[0]
