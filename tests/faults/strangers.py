"""Connections of a stranger to every port at which a process listens."""

from __future__ import annotations

import contextlib
import os
import random
import re
import socket
import struct
from collections.abc import Callable
from pathlib import Path

_LISTENS = "0A"
_NOW = struct.pack("ii", 1, 0)


def ports_of(process: int) -> set[int]:
    """The TCP ports at which a process of this machine listens."""
    sockets = set[str]()
    for name in os.listdir(f"/proc/{process}/fd"):
        with contextlib.suppress(OSError):  # closed meanwhile
            found = re.match(r"socket:\[(\d+)\]", os.readlink(f"/proc/{process}/fd/{name}"))
            sockets |= {found[1]} if found else set()
    lines = [
        line for table in ("tcp", "tcp6") for line in Path(f"/proc/{process}/net/{table}").read_text().splitlines()
    ]
    words = [line.split() for line in lines if not line.strip().startswith("sl")]
    return {int(word[1].split(":")[1], 16) for word in words if word[3] == _LISTENS and word[9] in sockets}


class Strangers:
    """Opens connections to ports of this machine, and keeps those that are meant to stay.

    Args:
        ports: Where to.
    """

    def __init__(self, ports: set[int]) -> None:
        self._ports = ports
        self._held = list[socket.socket]()
        self._dice = random.Random(1)

    def idle(self, number: int) -> None:
        """Connections that stay open and send nothing."""
        self._each(number, lambda one: None)

    def half_closed(self, number: int) -> None:
        """Connections that send nothing and never will, and are not closed either."""
        self._each(number, lambda one: one.shutdown(socket.SHUT_WR))

    def garbage(self, number: int) -> None:
        """Connections that send random bytes, and stay open."""
        self._each(number, lambda one: one.sendall(self._dice.randbytes(self._dice.choice((1, 8, 40, 4096)))))

    def broken(self, number: int) -> None:
        """Connections that are reset within their first bytes."""

        def break_off(one: socket.socket) -> None:
            one.send(self._dice.randbytes(5))
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NOW)
            one.close()

        self._each(number, break_off)

    def leave(self) -> None:
        """Close what is still open."""
        for one in self._held:
            one.close()

    def _each(self, number: int, act: Callable[[socket.socket], object]) -> None:
        for port in sorted(self._ports):
            opened = [socket.socket() for _ in range(number)]
            self._held += opened
            for one in opened:  # at once: those for which there is no room yet are tried again by the kernel
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
            for one in opened:
                with contextlib.suppress(OSError):  # not connected yet, or cut
                    act(one)
