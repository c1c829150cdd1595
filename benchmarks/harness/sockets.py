"""The kernel's byte counters of this process's TCP connections (Linux)."""

from __future__ import annotations

import gc
import os
import socket
import struct
import time
from dataclasses import dataclass
from pathlib import Path

_LISTEN = 10
_LIMIT_S = 60.0


@dataclass(frozen=True)
class TcpBytes:
    """Bytes since the connections were opened, excluding TCP headers."""

    acknowledged: int
    received: int

    def __sub__(self, earlier: TcpBytes) -> TcpBytes:
        return TcpBytes(self.acknowledged - earlier.acknowledged, self.received - earlier.received)


def count_tcp_bytes() -> TcpBytes:
    """Sum over all connections of this process, once everything sent has been acknowledged.

    Raises:
        TimeoutError: something remains unacknowledged.
    """
    gc.collect()  # unreferenced connections would otherwise close between two counts
    deadline_s = time.monotonic() + _LIMIT_S
    while time.monotonic() < deadline_s:
        infos = _connections()
        # struct tcp_info of linux/tcp.h: tcpi_unacked, tcpi_notsent_bytes, tcpi_bytes_acked, tcpi_bytes_received.
        if all(struct.unpack_from("I", info, 24) == struct.unpack_from("I", info, 144) == (0,) for info in infos):
            pairs = [struct.unpack_from("QQ", info, 120) for info in infos]
            return TcpBytes(sum(acked for acked, _ in pairs), sum(received for _, received in pairs))
        time.sleep(0.02)
    raise TimeoutError(f"bytes were still on their way after {_LIMIT_S:g} s")


def _connections() -> list[bytes]:
    found: list[bytes] = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            if not os.readlink(entry).startswith("socket:"):
                continue
            descriptor = os.dup(int(entry.name))
        except OSError:  # closed meanwhile; the listing itself has one
            continue
        with socket.socket(fileno=descriptor) as duplicate:
            is_tcp = duplicate.family in (socket.AF_INET, socket.AF_INET6) and duplicate.type == socket.SOCK_STREAM
            info = duplicate.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256) if is_tcp else b""
        if info and info[0] != _LISTEN:
            found.append(info)
    return found
