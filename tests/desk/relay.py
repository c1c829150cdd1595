"""A relay between a caller and a desk that breaks connections, falsifies bytes or goes silent in mid-transfer."""

from __future__ import annotations

import contextlib
import socket
import threading


class Relay:
    """Forwards connections to a desk.

    Args:
        target: The desk's address.
        cut_after: For each connection in turn the bytes of answers after which it is cut; later ones are whole.
        silent_after: Bytes of answers, over all connections, after which nothing is forwarded any more.
    """

    def __init__(self, target: str, cut_after: tuple[int, ...] = (), silent_after: int | None = None) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._cuts = list(cut_after)
        self._left = silent_after
        self.connections = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = [self._listener]
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        for each in self._sockets:
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            desk = socket.create_connection(self._target)
            self._sockets += [caller, desk]
            for each in (caller, desk):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            cut = self._cuts.pop(0) if self._cuts else None
            threading.Thread(target=self._there, args=(caller, desk), daemon=True).start()
            threading.Thread(target=self._back, args=(caller, desk, cut), daemon=True).start()

    def _there(self, caller: socket.socket, desk: socket.socket) -> None:
        try:
            while data := caller.recv(1 << 16):
                desk.sendall(data)
            desk.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass

    def _back(self, caller: socket.socket, desk: socket.socket, cut: int | None) -> None:
        try:
            while data := desk.recv(1 << 14):
                if self._left is not None:
                    data = data[: self._left]
                    self._left -= len(data)
                if cut is not None:
                    data, cut = data[:cut], cut - len(data)
                caller.sendall(data)
                if cut is not None and cut <= 0:
                    break
            caller.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
