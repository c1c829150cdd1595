"""Messages on a TCP connection: their length in eight bytes, then the message."""

from __future__ import annotations

import socket
import struct

_LENGTH = struct.Struct("<Q")
MOST_BYTES = 1 << 34
"""No message of the benchmark is larger."""


def send(connection: socket.socket, message: bytes) -> None:
    """Send one message; an empty one is a message, too. Raises OSError."""
    connection.sendall(_LENGTH.pack(len(message)))
    connection.sendall(message)


def receive(connection: socket.socket) -> bytes:
    """The next message.

    Raises:
        ConnectionError: the other side closed the connection, or sends something else.
        OSError: nothing came within the connection's time limit.
    """
    (length,) = _LENGTH.unpack(_exactly(connection, _LENGTH.size))
    if length > MOST_BYTES:
        raise ConnectionError(f"a message of {length:,} bytes is announced; at most {MOST_BYTES:,} are read")
    return bytes(_exactly(connection, length))


def _exactly(connection: socket.socket, length: int) -> bytearray:
    message = bytearray(length)
    view, filled = memoryview(message), 0
    while filled < length:
        taken = connection.recv_into(view[filled:])
        if not taken:
            raise ConnectionError(f"the connection was closed after {filled:,} of {length:,} bytes")
        filled += taken
    return message
