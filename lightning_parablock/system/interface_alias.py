"""The alias of a network interface: a text that root gives it (``ip link set dev NAME alias TEXT``)."""

from __future__ import annotations

import socket
import struct

_HEADER, _LINK, _ATTRIBUTE = struct.Struct("=LHHLL"), struct.Struct("=BxHiLL"), struct.Struct("=HH")
_ERROR, _GET_LINK, _REQUEST, _ALIAS = 2, 18, 1, 20
_MOST_BYTES = 1 << 16


def interface_alias(name: str) -> str:
    """The alias of a network interface of this process' network; empty if it has none.

    The kernel is asked itself (rtnetlink): /sys may show the interfaces of another network namespace.

    Raises:
        OSError: there is no such interface.
    """
    link = _LINK.pack(socket.AF_UNSPEC, 0, socket.if_nametoindex(name), 0, 0)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE) as kernel:
        kernel.send(_HEADER.pack(_HEADER.size + len(link), _GET_LINK, _REQUEST, 1, 0) + link)
        answer = kernel.recv(_MOST_BYTES)
    if _HEADER.unpack_from(answer)[1] == _ERROR:
        raise OSError(-struct.unpack_from("=i", answer, _HEADER.size)[0], f"interface {name} has gone")
    at = _HEADER.size + _LINK.size
    while at + _ATTRIBUTE.size <= len(answer):
        length, kind = _ATTRIBUTE.unpack_from(answer, at)
        if kind == _ALIAS:
            return answer[at + _ATTRIBUTE.size : at + length].rstrip(b"\0").decode(errors="replace")
        at += max(_ATTRIBUTE.size, (length + 3) // 4 * 4)  # padded to 4 bytes
    return ""
