"""Endpoints and addresses of links, as they are written into WireGuard's files: nothing else may get in there."""

from __future__ import annotations

import ipaddress
import re

from lightning_parablock.errors import ConfigurationError

_LABEL = "[A-Za-z0-9][A-Za-z0-9-]{0,62}"
_HOST = re.compile(rf"{_LABEL}(?:\.{_LABEL})*")
_LONGEST_HOST = 253
_PORT = re.compile(r"[1-9][0-9]{0,4}")
LAST_PORT = 65535


def checked_endpoint(option: str, text: str) -> tuple[str, int]:
    """Host and UDP port of ``host:port`` or ``[IPv6]:port``.

    Args:
        option: Name of the value in messages.
        text: What was given.

    Raises:
        ConfigurationError: the text is neither.
    """
    host, _, port = text.rpartition(":")
    if _is_host(host) and _PORT.fullmatch(port) and int(port) <= LAST_PORT:
        return host, int(port)
    raise ConfigurationError(
        f"{option} must be host:port, such as hub.example.org:51820 or [2001:db8::1]:51820, got {text!r:.100}"
    )


def _is_host(host: str) -> bool:
    if host.startswith("[") and host.endswith("]"):
        try:
            ipaddress.IPv6Address(host[1:-1])
        except ValueError:
            return False
        return "%" not in host
    return len(host) <= _LONGEST_HOST and _HOST.fullmatch(host) is not None


def checked_range(option: str, text: str) -> ipaddress.IPv4Network:
    """A range of private IPv4 addresses, such as ``10.81.0.0/24``.

    Raises:
        ConfigurationError: it is none, is not private, or holds fewer than 6 or more than 65,534 addresses.
    """
    try:
        network = ipaddress.IPv4Network(text)
    except ValueError as error:
        raise ConfigurationError(f"{option} must be a range such as 10.81.0.0/24, got {text!r:.60}") from error
    if str(network) != text or not 16 <= network.prefixlen <= 29 or not _is_private(network):
        raise ConfigurationError(
            f"{option} must be within 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10 and /16 to /29, such "
            f"as 10.81.0.0/24, got {text!r:.60}"
        )
    return network


def _is_private(network: ipaddress.IPv4Network) -> bool:
    private = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
    return any(network.subnet_of(ipaddress.IPv4Network(one)) for one in private)
