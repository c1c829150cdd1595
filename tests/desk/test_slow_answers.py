"""Answers that never end: a caller takes them byte by byte under its limits, and can give up at any time."""

from __future__ import annotations

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace

import pytest

from lightning_parablock.desk import caller as desk_caller
from lightning_parablock.desk.caller import call
from lightning_parablock.desk.message import SAID
from lightning_parablock.errors import UnreachableError

HEAD = f"HTTP/1.1 200 OK\r\n{SAID}: 2\r\nContent-Length: 90000\r\n\r\n".encode()
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@contextlib.contextmanager
def answering(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """Address of what answers one call as a test says, and then holds the connection."""
    has_ended = threading.Event()

    def serve() -> None:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.recv(1 << 16)
            answer(connection)
            has_ended.wait(60)

    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield f"127.0.0.1:{listening.getsockname()[1]}"
        has_ended.set()
        thread.join()


@pytest.mark.parametrize("begin", [b"H", HEAD[:40], HEAD, HEAD + b"{}" + bytes(5000)])
def test_a_caller_can_give_up_wherever_an_answer_stops(begin: bytes) -> None:
    looks: list[int] = []

    def look() -> None:
        looks.append(len(looks))
        if len(looks) == 6:
            raise TimeoutError("abandoned")

    with (
        answering(lambda connection: connection.sendall(begin)) as address,
        pytest.raises(TimeoutError, match="abandoned"),
    ):
        call(address, "x", {}, limit_s=30, look=look)


@pytest.mark.parametrize("begin", [b"", HEAD])
def test_single_bytes_do_not_keep_a_caller(begin: bytes) -> None:
    def drip(connection: socket.socket) -> None:
        connection.sendall(begin)
        while True:  # until the caller has closed the connection
            connection.sendall(b" ")
            threading.Event().wait(0.02)

    with answering(drip) as address, pytest.raises(UnreachableError, match=r"silent for 0\.3 s") as raised:
        call(address, "x", {}, limit_s=0.3)
    assert raised.value.kind == "silent"


def test_an_answer_takes_longer_than_the_limit_while_enough_of_it_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(desk_caller, "_PROGRESS_BYTES", 100)
    now_s, looked = [0.0], threading.Semaphore(0)
    monkeypatch.setattr(desk_caller, "time", SimpleNamespace(monotonic=lambda: now_s[0]))

    def look() -> None:
        now_s[0] += 0.5
        looked.release()

    def send(connection: socket.socket) -> None:
        connection.sendall(HEAD + b"{}")
        for _ in range(89998 // 1000):
            looked.acquire()
            connection.sendall(bytes(1000))
        connection.sendall(bytes(89998 % 1000))

    with answering(send) as address:
        assert len(call(address, "x", {}, limit_s=4.0, look=look).body) == 89998
    assert now_s[0] > 6.0


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        (CONTINUE * 1000, "not the desk of a site"),
        (HEAD[:-2] + b"A: b\r\n" * 3000, "the head of the answer is longer than 16384 bytes"),
        (b"x" * 20000, "the head of the answer is longer than 16384 bytes"),
        (HEAD.replace(b"90000", b"2") + b"{}more", "4 bytes came behind the answer"),
    ],
)
def test_an_answer_that_is_none_is_refused_by_name(answer: bytes, text: str) -> None:
    with (
        answering(lambda connection: connection.sendall(answer)) as address,
        pytest.raises(UnreachableError, match=text) as raised,
    ):
        call(address, "x", {}, limit_s=20)
    assert raised.value.kind == "foreign"
