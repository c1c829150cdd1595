"""Whom gloo is connected to: the addresses that a federation's roster gives to the sites of the run, and no others.

gloo learns the addresses of its peers from a store that every member can write, and does not authenticate those that
connect to it. WireGuard proves the source of a connection. So right after a group is opened, and before anything is
sent through it, there must be exactly one new connection with the inner address of every other site: a site that has
one in the name of another would need two.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting.connections import Connection, Place, connections_here


@dataclass(frozen=True)
class GlooPeers:
    """The listeners of the sites of a run.

    Attributes:
        federation: Its name and the version of its roster, for messages.
        own: Of this site.
        others: Of each other site, by name, with its inner address.
    """

    federation: str
    own: Place
    others: Mapping[str, Place]

    @contextmanager
    def checked(self) -> Generator[None]:
        """While one gloo group is opened; see :meth:`check`."""
        before = connections_here()
        yield
        self.check(connections_here() - before)

    def check(self, new: Collection[Connection]) -> None:
        """Refuse a group that is not connected to every other site at its inner address, once.

        Args:
            new: Connections that this process has had since the group was opened. Those of other services count for
                nothing.

        Raises:
            ProtocolError: names the first site, and what there is.
        """
        accepted = [there[0] for here, there in new if here == self.own]
        opened = [there[0] for here, there in new if there in self.others.values() and here != self.own]
        found = Counter(accepted + opened)
        for site, (address, _) in self.others.items():
            if found[address] != 1:
                raise ProtocolError(
                    f"gloo has {found[address]} connections with site {site!r} at {address}, the address that "
                    f"{self.federation} gives it, and should have one; it is connected to {_said(found)}. A site may "
                    "have taken the place of another, or given an address outside the private network; nothing was "
                    "sent. Look for a site whose address or GLOO_SOCKET_IFNAME is not its own"
                )


def _said(found: Mapping[str, int]) -> str:
    return ", ".join(f"{address} ({n})" for address, n in sorted(found.items())) or "no site"
