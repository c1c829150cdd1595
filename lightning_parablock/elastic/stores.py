"""The stores in which the members of a generation tell each other where they listen; every site hosts one."""

from __future__ import annotations

import socket
from collections.abc import Callable, Mapping
from datetime import timedelta

from torch.distributed import (
    DistError,
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ConfigurationError, PeerLostError, UnreachableError
from lightning_parablock.meeting.rendezvous import one_line
from lightning_parablock.regroup.log import Record
from lightning_parablock.settings.ports import PortRange, opened_on_one_of

Tell = Callable[[bytes], Mapping[str, bytes]]
"""Tells the other members this site's statement, and returns that of each member, by site."""

_WAITING = 128
"""Connections that wait to be accepted: all members of a generation come at once."""


def host_store(host: str, ports: PortRange | None = None, *, is_private: bool = False) -> TCPStore:
    """A store of this process.

    Args:
        host: Address at which the other sites reach this one.
        ports: Range of ports to take one of; None for any.
        is_private: Whether it must listen at this address alone, also where any port will do.

    Raises:
        ConfigurationError: every port of the range is taken, or the address is not this machine's.
    """
    if ports is None and not is_private:
        return TCPStore("0.0.0.0", 0, is_master=True, wait_for_workers=False)
    listening = _listening(host, ports)
    port = int(listening.getsockname()[1])
    # The store closes the socket. It would print a warning for each port that it found taken by itself.
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listening.detach())


def _listening(host: str, ports: PortRange | None) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return opened_on_one_of(
            [0] if ports is None else range(ports.first, ports.last + 1),
            lambda port: socket.create_server((host, port), family=family, backlog=_WAITING),
        )
    except OSError as problem:
        given = "" if ports is None else f"ports='{ports}': "
        hint = "" if ports is None else "; a site takes three ports of the range, so give it about 100"
        raise ConfigurationError(
            f"{given}{socket.gethostname()} cannot listen at {host}: {problem.strerror or problem}{hint}"
        ) from problem


def join_store(address: str, limit_s: float) -> Store:
    """The store of another site.

    Args:
        address: ``host:port``.
        limit_s: Limit for connecting, and for each wait in it.

    Raises:
        UnreachableError: nothing answers there.
    """
    host, _, port = address.rpartition(":")
    try:
        return TCPStore(
            host.removeprefix("[").removesuffix("]"),
            int(port),
            is_master=False,
            wait_for_workers=False,
            timeout=timedelta(seconds=limit_s),
        )
    except DistError as error:
        raise UnreachableError(f"the store at {address} cannot be reached: {one_line(error)}", "refused") from error


def tell_by(store: Store, generation: Record, site: str, limit_s: float) -> Tell:
    """Tell statements by the store in which the members of a generation meet.

    Args:
        store: The store, which keeps whatever anybody writes: the signatures count.
        generation: The record of the generation.
        site: This site.
        limit_s: Limit for the statement of each member.
    """

    def tell(text: bytes) -> Mapping[str, bytes]:
        place = PrefixStore(f"parablock statements {generation.generation}", store)
        place.set_timeout(timedelta(seconds=limit_s))
        place.set(site, text.decode("ascii"))
        received = dict[str, bytes]()
        for other in sorted(generation.sites[client] for client in generation.members):
            try:
                received[other] = place.get(other)
            except DistError as error:
                raise PeerLostError(
                    f"generation {generation.generation}: site {other!r} has not stated within {limit_s:g} s with whom "
                    "it takes part; nothing is masked before every member has"
                ) from error
        return received

    return tell
