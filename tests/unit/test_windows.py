"""Messages under way: bounded in number, buffers used again only when they are free, at the rate that was asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.transport import pacing
from lightning_parablock.transport.chunks import HEADER_BYTES, WINDOW, Header, Kind
from lightning_parablock.transport.pacing import Pacer
from lightning_parablock.transport.windows import Expected, ReceiveWindow, SendWindow
from lightning_parablock.transport.wires import Ticket, Transfer, Wire

PAYLOAD_BYTES = 8


class Posted(Ticket):
    @override
    def wait(self, limit_s: float) -> None:
        raise AssertionError("only finish waits")


class Recorder(Wire):
    """Takes note of what is posted and what is waited for, in order."""

    device = torch.device("cpu")
    posts_early = True

    def __init__(self) -> None:
        self.events: list[tuple[str, int, int]] = []
        self.buffers: list[Tensor] = []

    def new_buffer(self, size_bytes: int) -> Tensor:
        self.buffers.append(torch.zeros(size_bytes, dtype=torch.uint8))
        return self.buffers[-1]

    def post(self, receives: Sequence[Transfer], sends: Sequence[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        for name, transfers in (("receive", receives), ("send", sends)):
            self.events += [(name, t.rank, t.message.data_ptr()) for t in transfers]
        return [Posted(t) for t in receives], [Posted(t) for t in sends]

    def finish(self, ticket: Ticket) -> None:
        self.events.append(("finish", ticket.transfer.rank, ticket.transfer.message.data_ptr()))

    def close(self) -> None:
        raise AssertionError("not asked for")


def test_a_send_buffer_is_used_again_only_when_its_messages_have_gone() -> None:
    wire = Recorder()
    window = SendWindow(wire, wire.finish, n_slots=3)
    for _ in range(5):
        window.send(window.message(PAYLOAD_BYTES), [1, 2], Kind.COMMIT)
    assert len(wire.buffers) == 3
    window.drain()
    under_way: set[tuple[int, int]] = set()
    for name, rank, address in wire.events:
        if name == "send":
            assert (rank, address) not in under_way
            under_way.add((rank, address))
        else:
            under_way.remove((rank, address))
    assert not under_way
    assert sum(name == "send" for name, *_ in wire.events) == 10


def test_a_longer_message_gets_a_longer_buffer_and_a_shorter_one_a_part() -> None:
    wire = Recorder()
    window = SendWindow(wire, wire.finish, n_slots=1)
    for payload_bytes, n_buffers in ((10, 1), (4, 1), (20, 2)):
        message = window.message(payload_bytes)
        assert message.numel() == HEADER_BYTES + payload_bytes
        assert len(wire.buffers) == n_buffers
        window.send(message, [1], Kind.DELTA)


def expected(step: int, lane: int) -> Expected:
    return Expected(lane + 1, Header(Kind.DELTA, 0, 0, 0, lane + 1, step, PAYLOAD_BYTES), slice(step, step + 2))


@pytest.mark.parametrize("n_steps", [0, 1, WINDOW, 3 * WINDOW + 1])
def test_receives_are_posted_a_window_ahead_and_in_order(n_steps: int) -> None:
    wire = Recorder()
    window = ReceiveWindow(wire, wire.finish)
    for _ in range(2):  # the second exchange uses the buffers of the first
        wire.events.clear()
        window.begin([[expected(step, lane) for lane in range(2)] for step in range(n_steps)])
        for step in range(n_steps):
            posted = [event for event in wire.events if event[0] == "receive"]
            assert len(posted) == 2 * min(n_steps, step + WINDOW)
            arrived = window.arrived(step)
            assert [(e.rank, e.part.start) for e, _ in arrived] == [(1, step), (2, step)]
            assert [message.data_ptr() for _, message in arrived] == [a for _, _, a in posted[2 * step : 2 * step + 2]]
            window.release(step)
    assert len(wire.buffers) == 2 * min(n_steps, WINDOW)


def test_the_mean_rate_stays_at_the_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 100.0
    slept_s: list[float] = []

    def sleep(seconds: float) -> None:
        nonlocal now_s
        now_s += seconds
        slept_s.append(seconds)

    monkeypatch.setattr(pacing.time, "monotonic", lambda: now_s)
    monkeypatch.setattr(pacing.time, "sleep", sleep)
    pacer = Pacer(upload_bps=8000.0)
    for message_bytes in (500, 1000, 250):
        pacer.wait(message_bytes)
    assert slept_s == pytest.approx([0.0, 0.5, 1.0])
    now_s += 10.0
    pacer.wait(1000)
    assert slept_s[-1] == 0.0, "what was not used in a pause is not made up for, and nothing is waited for"
    pacer.wait(1000)
    assert slept_s[-1] == pytest.approx(1.0)


def test_without_a_cap_nothing_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pacing.time, "sleep", lambda seconds: pytest.fail("slept"))
    Pacer(None).wait(10**12)
