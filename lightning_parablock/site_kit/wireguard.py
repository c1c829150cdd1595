"""Files for wg-quick (wireguard-tools), made from a roster and private keys.

The outer layer goes through the hub, which decrypts and forwards it. The inner layer runs inside it, between two sites
at a time; the hub has no key of it.
"""

from __future__ import annotations

from collections.abc import Sequence

from lightning_parablock.site_kit.endpoints import checked_endpoint
from lightning_parablock.site_kit.hub_keys import HubKeys
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.packet_rules import Entry, for_itself, forward_within, guard, nothing_but_links
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import Hub, RosterSite

KEEPALIVE_S = 15
"""Seconds between packets that keep the way through a router open."""
INNER_MTU = 1340
"""Bytes: what a packet of the outer layer (1420) carries, less the headers of the inner one."""

Section = tuple[str, Sequence[Entry]]


def outer_interface(roster: Roster) -> str:
    """The interface of a site to the hub; the lighthouse is reached over it."""
    return f"{roster.federation}-outer"


def inner_interface(roster: Roster) -> str:
    """The interface between sites, for all that a run sends."""
    return f"{roster.federation}-inner"


def hub_interface(roster: Roster) -> str:
    """The interface of the hub to all sites."""
    return f"{roster.federation}-hub"


def alias(roster: Roster) -> str:
    """What a site's interfaces say of the version with which they were opened: a file may be newer than they are."""
    return f"version {roster.version} of federation {roster.federation}, SHA-256 {roster.digest.hex()}"


def site_files(roster: Roster, site: RosterSite, identity: Identity) -> dict[str, str]:
    """The files of a site, as a text for each interface, in the order in which they are started."""
    files = dict[str, str]()
    if roster.hub is not None and site.outer_address is not None:
        sections = _outer(roster, roster.hub, site.outer_address, identity)
        files[outer_interface(roster)] = _text(roster, f"outer layer of site {site.name}, to the hub", sections)
    inner = [_inner(roster, site, identity), *(_inner_peer(roster, other) for other in roster.sites if other != site)]
    files[inner_interface(roster)] = _text(roster, f"inner layer of site {site.name}, to the other sites", inner)
    return files


def hub_file(roster: Roster, hub: Hub, keys: HubKeys) -> str:
    """The file of the hub.

    The hub forwards between sites alone: neither to other networks of its own nor for other interfaces.
    """
    outer_range = roster.outer_range or ""
    interface = (
        ("PrivateKey", keys.link.private),
        ("Address", f"{hub.address}/32"),
        ("ListenPort", checked_endpoint("hub's endpoint", hub.endpoint)[1]),
        *guard(outer_range),
        *forward_within(outer_range),
    )
    peers = [
        ("Peer", (("PublicKey", site.card.outer_key), ("AllowedIPs", f"{site.outer_address}/32")))
        for site in roster.sites
    ]
    return _text(roster, "outer layer of the hub", [("Interface", interface), *peers])


def _outer(roster: Roster, hub: Hub, address: str, identity: Identity) -> list[Section]:
    outer_range = roster.outer_range or ""
    interface = (
        ("PrivateKey", identity.outer.private),
        ("Address", f"{address}/32"),
        *guard(outer_range),
        *nothing_but_links(address, outer_range, roster.inner_port),
        _named(roster),
    )
    peer = (
        ("PublicKey", hub.key),
        ("Endpoint", hub.endpoint),
        ("AllowedIPs", outer_range),
        ("PersistentKeepalive", KEEPALIVE_S),
    )
    return [("Interface", interface), ("Peer", peer)]


def _inner(roster: Roster, site: RosterSite, identity: Identity) -> Section:
    port = _inner_endpoint(roster, site)[1]
    mtu = (("MTU", INNER_MTU),) if roster.hub is not None else ()  # a single layer has the usual one
    return "Interface", (
        ("PrivateKey", identity.inner.private),
        ("Address", f"{site.inner_address}/32"),
        ("ListenPort", port),
        *mtu,
        *guard(roster.inner_range),
        *for_itself(site.inner_address),
        _named(roster),
    )


def _inner_peer(roster: Roster, site: RosterSite) -> Section:
    host, port = _inner_endpoint(roster, site)
    return "Peer", (
        ("PublicKey", site.card.inner_key),
        ("Endpoint", f"{host}:{port}"),
        ("AllowedIPs", f"{site.inner_address}/32"),
    )


def _inner_endpoint(roster: Roster, site: RosterSite) -> tuple[str, int]:
    """Where other sites reach the inner layer of a site: inside the outer one, or at its public endpoint."""
    if site.outer_address is not None:
        return site.outer_address, roster.inner_port
    return checked_endpoint("endpoint", site.card.endpoint or "")


def _named(roster: Roster) -> Entry:
    return "PostUp", f"ip link set dev %i alias '{alias(roster)}'"


def _text(roster: Roster, what: str, sections: Sequence[Section]) -> str:
    lines = [f"# Federation {roster.federation}, version {roster.version}: {what}. Made by lightning-parablock."]
    for heading, entries in sections:
        lines += ["", f"[{heading}]", *(f"{name} = {value}" for name, value in entries)]
    return "\n".join(lines) + "\n"
