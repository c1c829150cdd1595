"""The private network of a federation: the address of each site in it, and the refusal of every other address.

A federation has two layers of WireGuard. Every site and the hub have an address in the outer one, which the hub
decrypts; every site has another one in the inner layer, which only the two sites of a connection decrypt. Where all
sites are public there is no hub, and the inner layer alone. WireGuard accepts a packet only if its source is the
address that the roster gives to the owner of the key, so an address here tells which site speaks.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import psutil

from lightning_parablock.checks import require
from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.meeting.addresses import INTERFACE_VARIABLE
from lightning_parablock.system.interface_alias import interface_alias

log = logging.getLogger(__name__)

_EVERYWHERE = ("0.0.0.0", "::")


@dataclass(frozen=True)
class PrivateLinks:
    """The addresses of a federation, as one of its sites uses them.

    Attributes:
        federation: Its name and the version of its roster, for messages.
        site: Name of this site.
        inner: Inner address of each site, by name.
        outer: Outer address of each site, by name; empty without a hub.
        hub: Outer address of the hub; None without one.
        files: wg-quick's files of this site's interfaces, in the order in which they are opened; for messages.
        alias: What interfaces say that were opened with this version.
    """

    federation: str
    site: str
    inner: Mapping[str, str]
    outer: Mapping[str, str]
    hub: str | None
    files: Sequence[str] = field(compare=False)
    alias: str

    @property
    def own(self) -> str:
        """This site's inner address."""
        return self.inner[self.site]

    # --- what users give ----------------------------------------------------------------------------------------------

    def check_lighthouse(self, address: str) -> None:
        """Refuse a lighthouse outside the outer layer, or outside the only one.

        Args:
            address: ``host:port``.

        Raises:
            ConfigurationError: the host is no such address of the roster.
        """
        if self.hub is None:
            known, advice = self.inner.values(), f"an address of one of the sites, {self._listed()}"
        else:
            known, advice = [self.hub, *self.outer.values()], f"an outer address, which is {self.hub} for the hub"
        require(
            _is_one_of(address.rpartition(":")[0], known),
            f"lighthouse={address!r} is outside the private network of {self.federation}: give {advice}",
        )

    def check_meeting(self, host: str, name: str) -> None:
        """Refuse a place where the ranks are to meet that is outside the inner layer.

        Args:
            host: Host name or address.
            name: Option or variable that has given it.

        Raises:
            ConfigurationError: the host is no inner address of the roster.
        """
        require(
            _is_one_of(host, self.inner.values()),
            f"{name}: the ranks are to meet at {host!r}, which is outside the private network of {self.federation}: "
            f"give the inner address of one of the sites, {self._listed()}",
        )

    def check_here(self) -> None:
        """Refuse a machine without this site's interfaces, and a variable that names another one.

        Raises:
            ConfigurationError: an interface is missing or down, or was opened with another version of the roster, or
                ``GLOO_SOCKET_IFNAME`` names another one.
        """
        interfaces = interfaces_here()
        layers = {"inner": self.own} if self.hub is None else {"outer": self.outer[self.site], "inner": self.own}
        for layer, address in layers.items():
            require(
                address in interfaces,
                f"no network interface of {socket.gethostname()} has the {layer} address {address} of site "
                f"{self.site} in {self.federation}, or it is down; open the links first: {self._commands('up')}",
            )
            self._check_version(interfaces[address])
        named, inner = os.environ.get(INTERFACE_VARIABLE, ""), interfaces[self.own]
        require(
            named in ("", inner),
            f"{INTERFACE_VARIABLE}={named}, but with federation the run uses {inner} alone, the interface with the "
            f"inner address {self.own} of site {self.site}; unset {INTERFACE_VARIABLE}",
        )

    def _check_version(self, interface: str) -> None:
        """Links of an older version would still let in a site that was removed since."""
        found = interface_alias(interface)
        if found == self.alias:
            return
        version = found.partition(", ")[0]
        if not found:
            runs = "does not say with which version of the federation it was opened"
        else:
            runs = f"runs with {'another ' if version == self.federation else ''}{version}"
        raise ConfigurationError(
            f"the link {interface} {runs}, and the federation file of site {self.site} has {self.federation}: run "
            f"lightning-parablock site join with this file, unless you have, and then, as root: "
            f"{self._commands('down')}; {self._commands('up')}"
        )

    def _commands(self, word: str) -> str:
        """What root types to open the links, or to close them."""
        files = self.files if word == "up" else reversed(self.files)
        return "; ".join(f"wg-quick {word} {file}" for file in files)

    def check_listeners(self, addresses: Iterable[str]) -> None:
        """Refuse listeners at another address than this site's inner one.

        Raises:
            ConfigurationError: there is one, since the interface has several addresses.
        """
        for address in addresses:
            require(
                _is_one_of(address, [self.own]),
                f"the exchanges of site {self.site} would listen at {address}, which is not its inner address "
                f"{self.own} in {self.federation}; unset {INTERFACE_VARIABLE}",
            )

    def warn_of_open_store(self, port: int) -> None:
        """Say so where a launcher's store listens at every address of this machine; no option of it changes that."""
        listening = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
        if any(place and place.port == port and place.ip in _EVERYWHERE for place in listening):
            log.warning(
                "parablock: the launcher's store, where the ranks meet, listens at every address of this machine and "
                "not at %s alone: let a firewall close TCP port %d on all other interfaces, or start the sites without "
                "a launcher, with the option rendezvous",
                *(self.own, port),
            )

    def _listed(self) -> str:
        return ", ".join(f"{address} ({site})" for site, address in self.inner.items())

    # --- what peers say -----------------------------------------------------------------------------------------------

    def check_peer(self, site: str, host: str, what: str) -> None:
        """Refuse an address that the roster does not give to a site.

        Args:
            site: Name of the site.
            host: The address, without a port.
            what: Is there, such as "the desk"; for messages.

        Raises:
            ProtocolError: the roster gives the site another address, or does not have the site.
        """
        address = self.inner.get(site)
        if address is None:
            raise ProtocolError(
                f"{what} of site {site[:80]!r} at {host[:80]} is refused: {self.federation} has no such site; one that "
                "was revoked cannot take part, and a new one needs a roster that names it"
            )
        if not _is_one_of(host, [address]):
            raise ProtocolError(
                f"{what} of site {site!r} at {host[:80]} is refused: {self.federation} gives this site the address "
                f"{address}; start it with its own federation.yaml"
            )

    def check_peer_port(self, site: str, address: str, what: str) -> None:
        """The same for ``host:port``."""
        self.check_peer(site, address.rpartition(":")[0], what)


def interfaces_here() -> dict[str, str]:
    """The network interfaces of this machine that are up, by their IP addresses."""
    is_up = {name: stats.isup for name, stats in psutil.net_if_stats().items()}
    return {
        one.address.partition("%")[0]: name
        for name, addresses in psutil.net_if_addrs().items()
        for one in addresses
        if one.family in (socket.AF_INET, socket.AF_INET6) and is_up.get(name, False)
    }


def _is_one_of(host: str, addresses: Iterable[str]) -> bool:
    """Whether a text is one of some IP addresses; never for a name, which may resolve to another address later."""
    try:
        found = ipaddress.ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return found in {ipaddress.ip_address(address) for address in addresses}
