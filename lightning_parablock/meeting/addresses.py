"""The address at which the other ranks can reach this machine.

By default gloo listens on the address that the machine's own name resolves to. On Debian this is 127.0.1.1, which no
other machine can reach. This package uses the address from which the machine reaches the rendezvous.
"""

from __future__ import annotations

import ipaddress
import socket

import psutil

from lightning_parablock.errors import ConfigurationError

INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"
LOOPBACK = "127.0.0.1"
_ELSEWHERE = "192.0.2.1"  # reserved for documentation (RFC 5737): selects the default route and is never contacted
_ANY_PORT = 9


def own_address(master: str, *, one_host: bool, reached_as: str | None = None, role: str = "rendezvous") -> str:
    """The address at which the other ranks reach this machine.

    Args:
        master: Host name or address of the rendezvous, or of what all sites reach in its place.
        one_host: Whether all ranks run on this machine.
        reached_as: Address by which ranks on other machines reach the rendezvous, if it is known: on the machine that
            hosts it, its own name may resolve to a loopback address.
        role: What ``master`` is, for messages.

    Raises:
        ConfigurationError: the name does not resolve, or it is ambiguous which interface the others can reach.
    """
    if one_host:
        return LOOPBACK
    source = reached_from(master, role)
    if not is_loopback(source) or is_loopback(master) or master == "localhost":
        return source
    if reached_as is not None and reached_as in _outward_addresses():
        return reached_as
    return _address_for_others(master)


def reached_from(master: str, role: str = "rendezvous") -> str:
    """This machine's address on the route to the rendezvous; no packet is sent.

    Args:
        master: Host name or address of the rendezvous, or of what all sites reach in its place.
        role: What it is, for messages.

    Raises:
        ConfigurationError: the name does not resolve, or there is no route to the address.
    """
    try:
        found = socket.getaddrinfo(master, _ANY_PORT, type=socket.SOCK_DGRAM)
    except OSError as error:
        raise ConfigurationError(
            f"the {role} host {master!r} cannot be resolved on {socket.gethostname()}: {error}; give a name that "
            "every site resolves, or an address"
        ) from error
    sources = [_source(family, target) for family, _, _, _, target in found]
    first = next((source for source in sources if source is not None), None)
    if first is None:
        raise ConfigurationError(
            f"no route leads from {socket.gethostname()} to the {role} host {master!r}; check the network"
        )
    return first


def resolved(master: str) -> str | None:
    """Address of the rendezvous as resolved on this machine; None if the name does not resolve."""
    try:
        return str(socket.getaddrinfo(master, _ANY_PORT, type=socket.SOCK_DGRAM)[0][4][0])
    except OSError:
        return None


def is_loopback(address: str) -> bool:
    """Whether this is a loopback address; False for names."""
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


def _source(family: int, target: tuple[object, ...]) -> str | None:
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(target)
        except OSError:
            return None
        return str(probe.getsockname()[0])


def _outward_addresses() -> list[str]:
    """IPv4 addresses of this machine other than loopback addresses."""
    every = (address for addresses in psutil.net_if_addrs().values() for address in addresses)
    return [one.address for one in every if one.family == socket.AF_INET and not is_loopback(one.address)]


def _address_for_others(master: str) -> str:
    """Address for the other ranks of the rendezvous' machine, if its own name resolves to a loopback address."""
    default = _source(socket.AF_INET, (_ELSEWHERE, _ANY_PORT))
    if default is not None:
        return default
    outward = _outward_addresses()
    if len(outward) > 1:
        raise ConfigurationError(
            f"{master!r} resolves to a loopback address on {socket.gethostname()}, which has several others "
            f"({', '.join(outward)}) and no default route; name the interface that the other sites reach: "
            f"export {INTERFACE_VARIABLE}=eth0"
        )
    return outward[0] if outward else LOOPBACK
