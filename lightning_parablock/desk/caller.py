"""Calls to the desks of other sites: every wait has a limit, and every failure a name."""

from __future__ import annotations

import http.client
import io
import select
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from lightning_parablock.desk.listener import SILENCE_S
from lightning_parablock.desk.message import (
    MOST_BYTES,
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
from lightning_parablock.errors import ProtocolError, RefusedError, UnreachableError
from lightning_parablock.system.bounded_json import MOST_JSON_BYTES
from lightning_parablock.system.reading import reading

NOBODY = Identity()
_CONNECT_S = 10.0
_LOOK_S = 0.2
_HEAD_ENDS = b"\r\n\r\n"
_MOST_SPARE_S = 2.0
"""Added to the caller's own wait, or half of the limit if that is less: the answer has to travel, too."""
_PROGRESS_BYTES = 4096
"""As many bytes of an answer give the whole limit again, or its last ones: single bytes must not keep a caller."""
_local = threading.local()


def call(
    address: str,
    name: str,
    said: Mapping[str, Any],
    body: bytes | bytearray | memoryview | None = None,
    limit_s: float = 30.0,
    *,
    caller: Identity = NOBODY,
    repeatable: bool = False,
    look: Callable[[], object] | None = None,
    most_bytes: int = MOST_BYTES,
    pace: Callable[[int], None] | None = None,
) -> Reply:
    """Call another site's desk and return its answer.

    Args:
        address: ``host:port`` of the desk.
        name: Of the call.
        said: JSON object.
        body: Bytes beside it (a memoryview of single bytes); read, never changed.
        limit_s: Seconds for the handler to answer, and longest time for which the connection may stay silent while
            bytes travel: a message may take longer while parts of it keep arriving, of 4 KiB at least. A desk lets no
            caller wait longer than ``desk.service.LONGEST_S`` for something to happen.
        caller: Who calls.
        repeatable: Whether the call may reach the desk twice: it is sent once more where a connection that was kept
            from an earlier call broke.
        look: Called several times a second while the answer is awaited; raises to give up.
        most_bytes: Longest answer that is accepted.
        pace: Called before each slice of the body with its number of bytes; sleeps where a rate is capped.

    Returns:
        The answer; its body is a memoryview of bytes that belong to the caller.

    Raises:
        UnreachableError: no answer came.
        RefusedError: the answer is an error.

    Threads: each thread has connections of its own, which stay open from call to call.
    """
    task = _Task(name, said, body or b"", limit_s, caller, look, most_bytes, pace)
    kept = _kept(address)
    if kept is not None:
        try:
            return task.carry_out(address, kept)
        except UnreachableError as error:
            if not repeatable or error.kind == "silent":
                raise
    return task.carry_out(address, _connected(address, name, limit_s))


def close_connections() -> None:
    """Close the connections that this thread has kept."""
    for connection, _ in _connections().values():
        connection.close()
    _connections().clear()


class _Task:
    """One call, on whichever connection."""

    def __init__(
        self,
        name: str,
        said: Mapping[str, Any],
        body: bytes | bytearray | memoryview,
        limit_s: float,
        caller: Identity,
        look: Callable[[], object] | None,
        most_bytes: int,
        pace: Callable[[int], None] | None,
    ) -> None:
        self._name, self._said, self._body = name, encoded(said), memoryview(body)
        self._limit_s, self._caller_looks, self._most_bytes, self._pace = limit_s, look, most_bytes, pace
        self._silence_s = limit_s + min(_MOST_SPARE_S, limit_s / 2)
        self._gave_up: Exception | None = None
        self._headers = {
            **caller.headers(),
            SAID: str(len(self._said)),
            WAIT: f"{limit_s:.3f}",
            "Content-Length": str(len(self._said) + len(self._body)),
        }

    def carry_out(self, address: str, connection: http.client.HTTPConnection) -> Reply:
        """Send it and wait for the answer; the connection is kept where it is sound."""
        is_sound = False
        try:
            reply, is_sound = self._exchange(connection)
        except Exception as error:
            is_sound = isinstance(error, RefusedError)
            raise self._named(error, address) from (None if is_sound else error)
        finally:
            if is_sound and connection.sock is not None:
                _connections()[address] = (connection, time.monotonic())
            else:
                connection.close()
        return reply

    def _named(self, error: Exception, address: str) -> Exception:
        match error:
            case _ if error is self._gave_up:
                return error
            case RefusedError():
                return RefusedError(f"{self._name!r} at {address}: {error}", error.kind, error.details)
            case TimeoutError():
                kind, how = "silent", f"no answer to {self._name!r}: silent for {self._limit_s:g} s"
            case OSError() | http.client.IncompleteRead():
                kind, how = "cut", f"no answer to {self._name!r}: {getattr(error, 'strerror', None) or error}"
            case http.client.HTTPException() | ProtocolError():
                kind, how = "foreign", f"no proper answer to {self._name!r}: {error or type(error).__name__}"
            case _:
                return error
        return UnreachableError(f"{address} gave {how}", kind)

    def _look(self) -> None:
        if self._caller_looks is None:
            return
        try:
            self._caller_looks()
        except Exception as error:
            self._gave_up = error
            raise

    def _exchange(self, connection: http.client.HTTPConnection) -> tuple[Reply, bool]:
        sock: socket.socket = connection.sock
        sock.settimeout(self._silence_s)
        is_all_sent = self._send(connection)
        with sock.makefile("rb", 0):  # open until all is here, also where the head says that this answer is the last
            reply, is_sound = self._received(sock, connection)
        return reply, is_sound and is_all_sent

    def _send(self, connection: http.client.HTTPConnection) -> bool:
        """Send the call; False where the answer came first, which then is a refusal."""
        connection.putrequest("POST", f"/{self._name}", skip_accept_encoding=True)
        for header, value in self._headers.items():
            connection.putheader(header, value)
        connection.endheaders(self._said)
        for part in slices(self._body):
            self._look()
            if _has_something(connection.sock, 0.0):
                return False
            if self._pace is not None:
                self._pace(len(part))
            connection.send(part)
        return True

    def _await(self, sock: socket.socket, ends_s: float) -> None:
        """Wait for bytes; looks at least once, and then several times a second."""
        self._look()
        while not _has_something(sock, _LOOK_S):
            self._look()
            if time.monotonic() > ends_s:
                raise TimeoutError
        if time.monotonic() > ends_s:
            raise TimeoutError

    def _ends_s(self) -> float:
        return time.monotonic() + self._silence_s

    def _head(self, sock: socket.socket) -> tuple[bytes, bytes]:
        """The head of the answer, and what has come behind it."""
        self._await(sock, self._ends_s())
        came, end, ends_s = bytearray(), -1, self._ends_s()
        while end < 0:
            if len(came) > MOST_HEAD_BYTES:
                raise ProtocolError(f"the head of the answer is longer than {MOST_HEAD_BYTES} bytes")
            self._await(sock, ends_s)
            part = sock.recv(MOST_HEAD_BYTES)
            if not part:
                raise http.client.RemoteDisconnected("the connection was closed before the answer")
            came += part
            end = came.find(_HEAD_ENDS)
        end += len(_HEAD_ENDS)
        return bytes(came[:end]), bytes(came[end:])

    def _received(self, sock: socket.socket, connection: http.client.HTTPConnection) -> tuple[Reply, bool]:
        head, begun = self._head(sock)
        response = _parsed(connection, head)
        if SAID not in response.headers:
            raise ProtocolError("what listens there is not the desk of a site")
        total = length(response.headers, "Content-Length", self._most_bytes)
        of_json = length(response.headers, SAID, min(total, MOST_JSON_BYTES))
        if len(begun) > total:
            raise ProtocolError(f"{len(begun) - total} bytes came behind the answer")
        whole = memory_for(total)
        whole[: len(begun)] = begun
        self._read_into(sock, whole, len(begun))
        said = decoded(whole[:of_json])
        if response.status != 200:
            with reading("the error in the answer"):
                details = dict(said.get("details") or {})
            raise RefusedError(str(said.get("text", "")), str(said.get("kind", "refused")), details)
        return Reply(said, whole[of_json:]), not response.will_close

    def _read_into(self, sock: socket.socket, whole: memoryview, done: int) -> None:
        """Fill the rest of some memory."""
        noted, ends_s = done, self._ends_s()
        while done < len(whole):
            self._await(sock, ends_s)
            got = sock.recv_into(whole[done : done + SLICE_BYTES])
            if not got:
                raise http.client.IncompleteRead(b"", len(whole) - done)
            done += got
            if done - noted >= _PROGRESS_BYTES:
                noted, ends_s = done, self._ends_s()


class _Arrived:
    """In place of a socket: a head that is here already, so that taking it apart waits for nothing."""

    def __init__(self, head: bytes) -> None:
        self._head = head

    def makefile(self, mode: str) -> io.BytesIO:
        """What a response reads from."""
        return io.BytesIO(self._head)


def _parsed(connection: http.client.HTTPConnection, head: bytes) -> http.client.HTTPResponse:
    """The head of an answer; the connection is ready for another call then, or closed where this was the last."""
    arrived: Any = _Arrived(head)
    connection.response_class = lambda sock, **options: http.client.HTTPResponse(arrived, method="POST")  # pyright: ignore
    try:
        with connection.getresponse() as response:
            return response
    except http.client.RemoteDisconnected as error:  # nothing comes behind "100 Continue": no desk says that
        raise ProtocolError("what listens there is not the desk of a site") from error


def _connected(address: str, name: str, limit_s: float) -> http.client.HTTPConnection:
    host, _, port = address.rpartition(":")
    host, limit_s = host.removeprefix("[").removesuffix("]"), min(_CONNECT_S, limit_s)
    try:
        connection = http.client.HTTPConnection(host, int(port), timeout=limit_s)
    except (ValueError, http.client.InvalidURL) as error:
        raise _no_address(address, name) from error
    try:
        connection.connect()
    except (ValueError, OverflowError) as error:  # a name or a port that no machine has
        connection.close()
        raise _no_address(address, name) from error
    except OSError as error:
        connection.close()
        kind = "silent" if isinstance(error, TimeoutError) else "refused"
        raise UnreachableError(
            f"{address} cannot be reached for {name!r}: {error.strerror or error or type(error).__name__}", kind
        ) from error
    return connection


def _no_address(address: str, name: str) -> UnreachableError:
    return UnreachableError(f"{name!r} cannot be asked at {address!r:.80}: a desk's address is host:port", "refused")


def _kept(address: str) -> http.client.HTTPConnection | None:
    """This thread's connection of an earlier call, if it is still open as far as one can tell; closes all that are not.

    A process that has ended is never called again: its connection is found here, at a call of any other.
    """
    connections, now_s = _connections(), time.monotonic()
    for other, (connection, used_s) in list(connections.items()):
        is_fresh = now_s - used_s < SILENCE_S / 2
        # What arrives outside a call can only be its end.
        if not is_fresh or connection.sock is None or _has_something(connection.sock, 0.0):
            del connections[other]
            connection.close()
    return connections.pop(address, (None, 0.0))[0]


def _has_something(sock: socket.socket, within_s: float) -> bool:
    poll = select.poll()
    poll.register(sock, select.POLLIN)
    return bool(poll.poll(1000 * within_s))


def _connections() -> dict[str, tuple[http.client.HTTPConnection, float]]:
    if not hasattr(_local, "connections"):
        _local.connections = {}
    return _local.connections
