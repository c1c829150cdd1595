"""The TCP connections of this process, and how long one may bring no answer before the kernel gives it up."""

from __future__ import annotations

import contextlib
import os
import socket
import stat
from collections.abc import Generator, Iterator
from contextlib import contextmanager

Place = tuple[str, int]
"""Address and port."""
Connection = tuple[Place, Place]
"""The ends of a TCP connection: here, and there."""

_ESTABLISHED = 1  # a state of Linux's, in the first byte of TCP_INFO
_PROBES = 10
"""In the time limit, on a connection over which nothing has to go."""


def connections_here() -> set[Connection]:
    """The TCP connections of this process that both ends hold open."""
    return {ends for ends, _ in _open_here()}


@contextmanager
def given_up_after(silence_s: float) -> Generator[None]:
    """While connections are opened that end with an error once their other end has been silent for so long.

    It is the other kernel that answers: a slow link and a process that computes are not silent, a link that is cut and
    a router that has forgotten the connection are. Without this, one that waits for a message never ends, as gloo
    cannot ask its kernel for it.

    Args:
        silence_s: Seconds.
    """
    before = connections_here()
    yield
    if not hasattr(socket, "TCP_USER_TIMEOUT"):  # not Linux
        return
    every_s = max(1, int(silence_s / _PROBES))
    for ends, one in _open_here():
        if ends not in before:  # or of another service: its other end answers as well
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, every_s)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, every_s)
            one.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, int(1000 * silence_s))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)


def _open_here() -> Iterator[tuple[Connection, socket.socket]]:
    """Each connection, with a duplicate of its socket for as long as no further one is asked for."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        with contextlib.suppress(OSError):  # closed meanwhile, or not connected
            if stat.S_ISSOCK(os.fstat(fd).st_mode):
                with socket.socket(fileno=os.dup(fd)) as copy:
                    if copy.family in (socket.AF_INET, socket.AF_INET6) and _is_open(copy):
                        yield (copy.getsockname()[:2], copy.getpeername()[:2]), copy


def _is_open(one: socket.socket) -> bool:
    return one.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0] == _ESTABLISHED
