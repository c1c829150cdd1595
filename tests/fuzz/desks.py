"""What strangers send to a desk, what answers a call, and the tensors in both."""

from __future__ import annotations

import contextlib
import http.client
import socket
import threading
import zlib
from collections.abc import Callable
from functools import cache

import torch

from lightning_parablock.desk import caller, tensors
from lightning_parablock.desk.listener import _BrokenError, _Connection
from lightning_parablock.desk.message import SAID, Identity, Reply, decoded
from lightning_parablock.desk.service import Call, Desk
from lightning_parablock.errors import ProtocolError, RefusedError, UnreachableError
from tests.fuzz.target import Target, message, said_and_body


class _LocalConnection(_Connection):
    """On a pair of local sockets, which know no Nagle."""

    disable_nagle_algorithm = False


_VALUES = torch.arange(6, dtype=torch.float32).view(2, 3)


def _over(data: bytes, work: Callable[[socket.socket], object]) -> bytes:
    """Let a connection on which the bytes have arrived, and nothing more comes, do its work; returns what it sends.

    What it sends is read meanwhile: many small calls have answers that are longer than the sockets hold.
    """
    here, there = socket.socketpair()
    answer = bytearray()

    def read() -> None:
        with contextlib.suppress(ConnectionResetError):  # bytes were left unread
            while part := there.recv(1 << 16):
                answer.extend(part)

    with here, there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
        there.settimeout(5.0)
        here.settimeout(5.0)
        there.sendall(data)
        there.shutdown(socket.SHUT_WR)
        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            work(here)
        finally:
            here.close()
            reader.join()
        return bytes(answer)


# --- a desk -----------------------------------------------------------------------------------------------------------


@cache
def _desk() -> Desk:
    desk = Desk("127.0.0.1", most_bytes=1 << 16)
    desk.answer("echo", lambda call: Reply(call.said, call.body))
    return desk


def close_desk() -> None:
    """End the threads of the desk that answers; the next call makes another one."""
    if _desk.cache_info().currsize:
        _desk().close()
        _desk.cache_clear()


def _serve(data: bytes) -> bytes:
    server = _desk()._listener._server

    def work(connection: socket.socket) -> None:
        with contextlib.suppress(_BrokenError, ConnectionError, TimeoutError):  # the caller has gone
            _LocalConnection(connection, ("a stranger", 0), server)

    answer = _over(data[: 1 << 17], work)
    if b"HTTP/1.1 500" in answer:
        raise AssertionError(f"the desk has met an error of its own: {answer!r}")
    return answer


def _request(body: bytes, said: int, *, path: str = "/echo", more: str = "") -> bytes:
    head = f"POST {path} HTTP/1.1\r\nHost: a\r\n{SAID}: {said}\r\nParablock-Wait-S: 0.1\r\n{more}"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


# --- an answer --------------------------------------------------------------------------------------------------------


def _receive(data: bytes) -> object:
    task = caller._Task("echo", {}, b"", 0.1, Identity(), None, 1 << 16, None)
    replies: list[Reply] = []

    def work(sock: socket.socket) -> None:
        connection = http.client.HTTPConnection("desk", 1)
        connection.sock = sock
        try:
            replies.append(task.carry_out("desk:1", connection))
        finally:
            caller._connections().clear()

    _over(data[: 1 << 17], work)
    return replies


def _answer(status: int, said: bytes, body: bytes = b"") -> bytes:
    head = f"HTTP/1.1 {status} OK\r\n{SAID}: {len(said)}\r\nContent-Length: {len(said) + len(body)}\r\n\r\n"
    return head.encode() + said + body


# --- tensors ----------------------------------------------------------------------------------------------------------


def _summed(data: bytes) -> tuple[dict[str, object], bytes]:
    """JSON and bytes with the right checksum."""
    said, body = said_and_body(data)
    return {**decoded(said), "checksum": zlib.crc32(body)}, body


def _take(data: bytes) -> object:
    said, body = _summed(data)
    pull = tensors._Pull(None)
    for _ in range(3):
        pull.take(Reply(said, body))
    return pull.tensor if pull.is_complete else None


def _give(data: bytes) -> object:
    return tensors.chunk_reply(decoded(data), _VALUES, "version")


def _chunk() -> bytes:
    reply = tensors.chunk_reply({"first_byte": 0, "chunk_bytes": 100}, _VALUES, "version")
    return message(reply.said, bytes(reply.body))


def call_of(said: dict[str, object], body: bytes = b"") -> Call:
    """A call that waits for nothing."""
    return Call(said, memoryview(body), Identity("run", "b", "1"), 0.0, 0.0, _desk()._closing)


TARGETS = (
    Target(
        "desk-request",
        _serve,
        (),
        (
            _request(b'{"a":1}body', 7),
            _request(b"{}", 2, more="Expect: 100-continue\r\n") * 2,
            _request(b"{}", 2, path="/other", more="Parablock-Site: b\r\nConnection: close\r\n"),
            b"GET / HTTP/1.0\r\n\r\n",
            b"POST /echo\r\n\r\n",
        ),
    ),
    Target(
        "desk-answer",
        _receive,
        (UnreachableError, RefusedError),
        (
            _answer(200, b'{"a":1}', b"body"),
            _answer(400, b'{"kind":"no","text":"not here","details":{"a":1}}'),
            f"HTTP/1.1 200 OK\r\n{SAID}: 2\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n".encode(),
        ),
    ),
    Target(
        "json", decoded, (ProtocolError,), (b'{"a":[1,2.5,null,true,"b"]}', b"[" * 2000, b'{"a":' + b"9" * 5000 + b"}")
    ),
    Target(
        "tensor",
        lambda data: tensors.from_message(*_summed(data)),
        (ProtocolError,),
        (message(*tensors.as_message(_VALUES)), message(*tensors.as_message(torch.zeros(0, dtype=torch.bfloat16)))),
    ),
    Target("tensor-chunk", _take, (ProtocolError,), (_chunk(),)),
    Target("tensor-call", _give, (ProtocolError,), (message({"first_byte": 4, "chunk_bytes": 8}),)),
)
