"""Which thread takes which steps of an exchange: three lanes for three directions, or one where order must be kept.

A lane is one thread's part of every exchange. None of the three waits for itself: commits are always collected, so
commits can always leave, so servers can always continue, so deltas can always leave. Each lane works on its exchanges
in the order of their rounds, which is the same on every rank; messages of one kind are matched by it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.compression import Compression
from lightning_parablock.codecs.feedback import Coder
from lightning_parablock.membership.membership import Membership
from lightning_parablock.transport.chunks import HEADER_BYTES, SEND_WINDOW, Kind
from lightning_parablock.transport.exchange_steps import ExchangeSteps
from lightning_parablock.transport.pacing import Pacer
from lightning_parablock.transport.windows import Expected, Finish, ReceiveWindow, SendWindow
from lightning_parablock.transport.wires import Ticket, Transfer, Wire


@dataclass(frozen=True)
class LaneContext:
    """What the lanes of a rank share.

    Attributes:
        members: The ranks.
        wire: Carries the messages.
        finish: Waits for a transfer.
        pacer: Caps the rate.
        compression: Codec for the messages.
        cohort: Number of clients that train in a round; None for all.
    """

    members: Membership
    wire: Wire
    finish: Finish
    pacer: Pacer
    compression: Compression
    cohort: int | None = None


class Lane(ABC):
    """One thread's part of every exchange.

    Args:
        context: What it shares with the others.

    Attributes:
        name: Name of its thread.
        brings_commit: Whether the commit is complete only once this lane has done its part.
    """

    name: str
    brings_commit: bool

    def __init__(self, context: LaneContext) -> None:
        self.context = context
        self.coder = Coder(context.compression)

    @abstractmethod
    def carry_out(self, steps: ExchangeSteps) -> None:
        """Do this lane's part of an exchange; own messages may still be leaving afterwards."""

    @abstractmethod
    def prepare(self, steps: ExchangeSteps) -> None:
        """What must happen before any lane of this rank sends: a receive that is posted late halves the rate."""

    @abstractmethod
    def drain(self) -> None:
        """Wait until the messages of this lane have left."""

    def awaited(self) -> list[Expected]:
        """The messages it is waiting for; may be called from any thread."""
        return []


class DeltaLane(Lane):
    """Sends the deltas of this rank's clients: chunks leave while the next ones are packed."""

    name, brings_commit = "parablock-send", False

    def __init__(self, context: LaneContext) -> None:
        super().__init__(context)
        members = context.members
        hosted = len(members.clients[members.rank])
        senders = hosted if context.cohort is None else min(hosted, context.cohort)
        self._window = SendWindow(context.wire, context.finish, SEND_WINDOW * len(members.peers) * senders)

    @override
    def prepare(self, steps: ExchangeSteps) -> None:
        """It receives nothing."""

    @override
    def carry_out(self, steps: ExchangeSteps) -> None:
        for step in range(steps.n_steps):
            for peer, sender, part in steps.deltas_out(step):
                message = self._window.message(steps.delta_bytes(part, self.coder))
                steps.write_delta(message, sender, part, self.coder)
                self.context.pacer.wait(message.numel())
                self._window.send(message, [peer], Kind.DELTA)

    @override
    def drain(self) -> None:
        self._window.drain()


class ServerLane(Lane):
    """Receives the deltas of this rank's shard, sums them chunk by chunk while others arrive, and sends the commits."""

    name, brings_commit = "parablock-serve", True

    def __init__(self, context: LaneContext) -> None:
        super().__init__(context)
        self._in = ReceiveWindow(context.wire, context.finish)
        self._out = SendWindow(context.wire, context.finish, SEND_WINDOW)

    @override
    def prepare(self, steps: ExchangeSteps) -> None:
        self._in.begin(steps.deltas_in(self.coder))

    @override
    def carry_out(self, steps: ExchangeSteps) -> None:
        steps.begin_serving()
        for step in range(steps.n_serves):
            arrived = self._in.arrived(step)
            message = self._out.message(steps.commit_bytes(steps.part_served(step), self.coder))
            steps.serve(step, arrived, message, self.coder)
            self._in.release(step)
            self.context.pacer.wait(message.numel() * len(self.context.members.peers))
            self._out.send(message, self.context.members.peers, Kind.COMMIT)

    @override
    def drain(self) -> None:
        self._out.drain()

    @override
    def awaited(self) -> list[Expected]:
        return self._in.awaited()


class CommitLane(Lane):
    """Receives the commits of the other servers' shards."""

    name, brings_commit = "parablock-collect", True

    def __init__(self, context: LaneContext) -> None:
        super().__init__(context)
        self._in = ReceiveWindow(context.wire, context.finish)

    @override
    def prepare(self, steps: ExchangeSteps) -> None:
        self._in.begin(steps.commits_in(self.coder))

    @override
    def carry_out(self, steps: ExchangeSteps) -> None:
        for step in range(self._in.n_steps):
            steps.collect(self._in.arrived(step), self.coder)
            self._in.release(step)

    @override
    def drain(self) -> None:
        """It sends nothing."""

    @override
    def awaited(self) -> list[Expected]:
        return self._in.awaited()


class LockstepLane(Lane):
    """Everything on one thread, in matching batches: the deltas of step i from all ranks, then its commits."""

    name, brings_commit = "parablock-exchange", True

    @override
    def prepare(self, steps: ExchangeSteps) -> None:
        """Each batch posts its own receives."""

    @override
    def carry_out(self, steps: ExchangeSteps) -> None:
        steps.begin_serving()
        deltas, commits = steps.deltas_in(self.coder), steps.commits_in(self.coder)
        for step in range(steps.n_steps):
            outgoing = [self._delta(steps, *delta) for delta in steps.deltas_out(step)]
            incoming = [self._receive(expected) for expected in _at(deltas, step)]
            self._exchange(incoming, outgoing)
            outgoing = []
            if step < steps.n_serves:
                message = self._new(steps.commit_bytes(steps.part_served(step), self.coder))
                arrived = [(e, t.message) for e, t in zip(deltas[step], incoming, strict=True)]
                steps.serve(step, arrived, message, self.coder)
                outgoing = [Transfer(message, peer, Kind.COMMIT) for peer in self.context.members.peers]
            incoming = [self._receive(expected) for expected in _at(commits, step)]
            self._exchange(incoming, outgoing)
            steps.collect([(e, t.message) for e, t in zip(_at(commits, step), incoming, strict=True)], self.coder)

    @override
    def drain(self) -> None:
        """Each batch is waited for when it is posted."""

    def _delta(self, steps: ExchangeSteps, peer: int, sender: int, part: slice) -> Transfer:
        message = self._new(steps.delta_bytes(part, self.coder))
        steps.write_delta(message, sender, part, self.coder)
        return Transfer(message, peer, Kind.DELTA)

    def _receive(self, expected: Expected) -> Transfer:
        return Transfer(self._new(expected.header.length_bytes), expected.rank, expected.header.kind)

    def _new(self, payload_bytes: int) -> Tensor:
        return self.context.wire.new_buffer(HEADER_BYTES + payload_bytes)

    def _exchange(self, incoming: list[Transfer], outgoing: list[Transfer]) -> None:
        self.context.pacer.wait(sum(transfer.message.numel() for transfer in outgoing))
        tickets: list[list[Ticket]] = list(self.context.wire.post(incoming, outgoing))
        for ticket in (ticket for posted in tickets for ticket in posted):
            self.context.finish(ticket)


def _at(steps: list[list[Expected]], step: int) -> list[Expected]:
    return steps[step] if step < len(steps) else []


STREAMING: tuple[type[Lane], ...] = (DeltaLane, ServerLane, CommitLane)
"""Where receives may be posted early."""
LOCKSTEP: tuple[type[Lane], ...] = (LockstepLane,)
