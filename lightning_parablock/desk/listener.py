"""Listens for the calls of a desk: HTTP/1.1 with connections that stay open, on the standard library's server."""

from __future__ import annotations

import contextlib
import http.client
import io
import logging
import socket
import threading
import time
from collections.abc import Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol, cast

from typing_extensions import override

from lightning_parablock.desk.message import (
    MOST_HEAD_BYTES,
    SAID,
    SLICE_BYTES,
    WAIT,
    Identity,
    Reply,
    decoded,
    encoded,
    length,
    memory_for,
    slices,
)
from lightning_parablock.errors import ConfigurationError, ParaBlockError, ProtocolError, RefusedError
from lightning_parablock.settings.ports import PortRange, opened_on_one_of
from lightning_parablock.system.bounded_json import MOST_JSON_BYTES

log = logging.getLogger(__name__)

SILENCE_S = 60.0
"""A connection that has been idle for this long is closed; callers do not reuse one that was idle for half of it."""
_MOST_CONNECTIONS = 512
_WARN_S = 10.0
_DRAIN_BYTES, _DRAIN_S = 1 << 20, 2.0
"""How much of a refused message is still read, so that its sender sees the reason and not a broken connection."""
_LONGEST_PATH = 200


class Answers(Protocol):
    """What answers the calls."""

    def admit(self, name: str, caller: Identity) -> bool:
        """Raises for a call that is refused before its body is read; whether the caller is no stranger."""
        ...

    def reply(self, name: str, said: Mapping[str, Any], body: memoryview, caller: Identity, wait_s: float) -> Reply:
        """The answer to a call."""
        ...


class _BrokenError(Exception):
    """The connection ended, or was silent for too long, within a message."""


class Listener:
    """Accepts connections, and passes every call on them to ``answers``.

    Args:
        host: Address to listen at.
        port: TCP port; 0 for any, or for one of ``ports``.
        ports: Where ``port`` is 0: range of ports to take one of.
        answers: Answers the calls.
        most_bytes: Longest message that is accepted.

    Attributes:
        address: ``host:port``.

    Raises:
        ConfigurationError: no port could be opened.
    """

    def __init__(self, host: str, port: int, ports: PortRange | None, answers: Answers, most_bytes: int) -> None:
        tried = [port] if port or ports is None else list(range(ports.first, ports.last + 1))
        self._server = _opened(host, tried, answers, most_bytes)
        bound = int(self._server.server_address[1])
        self.address = f"[{host}]:{bound}" if ":" in host else f"{host}:{bound}"
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.1,), daemon=True, name="parablock-desk"
        )
        self._thread.start()

    def close(self, limit_s: float) -> None:
        """Free the port at once, give calls under way some time, then cut their connections."""
        ends_s = time.monotonic() + limit_s
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
        while self._server.busy and time.monotonic() < ends_s:
            time.sleep(0.01)
        self._server.cut()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def __init__(self, host: str, port: int, answers: Answers, most_bytes: int) -> None:
        self.answers, self.most_bytes = answers, most_bytes
        self.busy = 0
        self._open = dict[socket.socket, None]()  # in the order of their opening
        self._strangers = dict[socket.socket, None]()  # those without a call that was let pass
        self._warns_s = 0.0
        self._lock = threading.Lock()
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Connection)

    @override
    def server_bind(self) -> None:
        # HTTPServer's looks up the machine's name, which may take long where no name server answers.
        socket_of_server = self.socket
        socket_of_server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        socket_of_server.bind(self.server_address)
        self.server_address = socket_of_server.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    @override
    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            is_full = len(self._open) >= _MOST_CONNECTIONS
            oldest = next(iter(self._strangers), None) if is_full else None
            if oldest is not None:
                self._forget(oldest)
                _cut(oldest)
            accepts = not is_full or oldest is not None
            if accepts:
                self._open[request] = self._strangers[request] = None
        if is_full:
            self._warn()
        if accepts:
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def admitted(self, connection: socket.socket) -> None:
        """A call on this connection was let pass: it is not cut in favour of a new one."""
        with self._lock:
            self._strangers.pop(connection, None)

    def _forget(self, connection: socket.socket) -> None:
        self._open.pop(connection, None)
        self._strangers.pop(connection, None)

    def _warn(self) -> None:
        if time.monotonic() < self._warns_s:
            return
        self._warns_s = time.monotonic() + _WARN_S
        log.warning(
            "the desk has %d connections open, and for each new one cuts one that has sent no call; if this goes on, "
            "let only the other sites reach its port",
            _MOST_CONNECTIONS,
        )

    @override
    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._forget(request)
        super().shutdown_request(request)

    @override
    def handle_error(self, request: Any, client_address: Any) -> None:
        log.debug("the connection of %s ended", client_address, exc_info=True)

    def working(self, change: int) -> None:
        """Count the calls that are being answered."""
        with self._lock:
            self.busy += change

    def cut(self) -> None:
        """End all connections; threads that wait on them end, too."""
        with self._lock:
            still = list(self._open)
        for connection in still:
            _cut(connection)


def _cut(connection: socket.socket) -> None:
    """End a connection; the thread that waits on it ends, too, and closes it."""
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)


class _Head:
    """The lines of a message's head, and no more bytes than are accepted."""

    def __init__(self, stream: io.BufferedReader) -> None:
        self._stream, self._left = stream, MOST_HEAD_BYTES

    @property
    def is_too_long(self) -> bool:
        """Whether more has come."""
        return self._left < 0

    def readline(self, limit: int = -1) -> bytes:
        """The next line.

        Raises:
            LineTooLong: the head is.
        """
        line = self._stream.readline(self._left + 1)
        self._left -= len(line)
        if self.is_too_long:
            raise http.client.LineTooLong("head")
        return line


class _Connection(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "parablock-desk", ""
    timeout = SILENCE_S
    disable_nagle_algorithm = True
    wbufsize = SLICE_BYTES  # head and JSON leave together, and each piece has the whole limit to leave
    _unread = 0
    """Bytes of the message that have not been read."""

    @override
    def setup(self) -> None:
        super().setup()
        self._stream = cast(io.BufferedReader, self.rfile)

    @override
    def handle_one_request(self) -> None:
        self._head = _Head(self._stream)
        self.rfile = cast(io.BufferedReader, self._head)
        try:
            super().handle_one_request()
        except http.client.LineTooLong:  # already of its first line
            self.requestline = self.request_version = self.command = ""
            self.send_error(431)
        finally:
            self.rfile = self._stream

    def do_POST(self) -> None:
        """Answer one call."""
        server = cast(_Server, self.server)
        server.working(+1)
        try:
            self._unread = self._stated()
            status, reply = self._answered(server)
            if self._unread <= _DRAIN_BYTES:
                self._drain()
            self._send(status, reply)
            self._drain()
        finally:
            server.working(-1)

    def _stated(self) -> int:
        """Bytes of the message that are on their way, as the sender says."""
        text = self.headers.get("Content-Length", "0")
        return int(text) if text.isascii() and text.isdigit() and len(text) < 19 else 0

    def _answered(self, server: _Server) -> tuple[int, Reply]:
        try:
            if len(self.path) > _LONGEST_PATH:
                raise RefusedError("the name of the call is too long", "unknown")
            if "Transfer-Encoding" in self.headers:
                self.close_connection = True
                raise ProtocolError("a message must state its length; chunked ones are not accepted")
            name, caller = self.path.lstrip("/"), Identity.of(self.headers, str(self.client_address[0]))
            if server.answers.admit(name, caller):
                server.admitted(self.connection)
            total = length(self.headers, "Content-Length", server.most_bytes)
            of_json = length(self.headers, SAID, min(total, MOST_JSON_BYTES))
            wait_s = self._wait_s()
            message = self._read(total)
            said = decoded(message[:of_json])
            return 200, server.answers.reply(name, said, message[of_json:], caller, wait_s)
        except _BrokenError:
            raise  # the caller is gone
        except Exception as error:
            return 400 if isinstance(error, ParaBlockError) else 500, Reply(error_said(error))

    def _wait_s(self) -> float:
        text = self.headers.get(WAIT, "0")
        try:
            return max(0.0, min(float(text), 1e6))
        except ValueError as error:
            raise ProtocolError(f"header {WAIT} must be a number of seconds, got {text[:40]!r}") from error

    def _read(self, total: int) -> memoryview:
        whole = memory_for(total)
        done = 0
        while done < total:
            done += self._read_into(whole[done : done + SLICE_BYTES])
        return whole.toreadonly()

    def _read_into(self, part: memoryview) -> int:
        try:
            got = self._stream.readinto1(part)
        except OSError as error:
            raise _BrokenError from error
        if not got:
            raise _BrokenError
        self._unread -= got
        return got

    def _drain(self) -> None:
        """Read what is left of a refused message, within limits, so that its sender sees the reason, not a reset."""
        if not self._unread:
            return
        self.close_connection |= self._unread > _DRAIN_BYTES
        ends_s = time.monotonic() + _DRAIN_S
        self.connection.settimeout(_DRAIN_S)
        waste = memoryview(bytearray(SLICE_BYTES))
        try:
            while self._unread and time.monotonic() < ends_s:
                self._read_into(waste[: self._unread])
        except _BrokenError:
            self._unread = 0
        self.close_connection |= self._unread > 0
        self.connection.settimeout(SILENCE_S)

    def _send(self, status: int, reply: Reply) -> None:
        try:
            said = encoded(reply.said)
        except (TypeError, ValueError) as error:
            status, reply = 500, Reply(error_said(error))
            said = encoded(reply.said)
        self.send_response(status)
        self.send_header(SAID, str(len(said)))
        self.send_header("Content-Length", str(len(said) + memoryview(reply.body).nbytes))
        if self.close_connection or self._unread:
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(said)
        for part in slices(reply.body):
            if reply.pace is not None:
                reply.pace(len(part))
            self.wfile.write(part)
        self.wfile.flush()

    @override
    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What is wrong with the HTTP itself, in the form of every other error."""
        self.close_connection, text = True, message or self.responses[code][0]
        if self._head.is_too_long:
            self._unread, text = _DRAIN_BYTES, f"the head of a message is longer than {MOST_HEAD_BYTES} bytes"
        self._send(code, Reply({"kind": "http", "text": text}))
        self._drain()

    @override
    def log_message(self, format: str, *args: Any) -> None:
        log.debug(format, *args)


def error_said(error: Exception) -> dict[str, Any]:
    """What a caller learns of an error: its kind and its text, and never where in the code it arose."""
    if isinstance(error, RefusedError):
        return {"kind": error.kind, "text": str(error), "details": dict(error.details)}
    if not isinstance(error, ParaBlockError):
        log.warning("a call could not be answered", exc_info=error)
    return {"kind": type(error).__name__, "text": str(error)[:2000]}


def _opened(host: str, ports: list[int], answers: Answers, most_bytes: int) -> _Server:
    try:
        return opened_on_one_of(ports, lambda port: _Server(host, port, answers, most_bytes))
    except OSError as problem:
        which = f"port {ports[0]}" if len(ports) == 1 else f"one of the ports {ports[0]}-{ports[-1]}"
        raise ConfigurationError(
            f"{socket.gethostname()} cannot listen at {host}, {which}: {problem.strerror or problem}; end the program "
            "that uses it, choose other ports, or name the interface that the other sites reach"
        ) from problem
