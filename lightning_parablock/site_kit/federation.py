"""New rosters, and new versions of them. None of them is signed: that is for the sites."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from ipaddress import IPv4Address, IPv4Network
from itertools import islice

from lightning_parablock.errors import ConfigurationError, RosterError
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.endpoints import checked_range
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import Hub, RosterSite

OUTER_RANGE, INNER_RANGE, INNER_PORT = "10.81.0.0/24", "10.82.0.0/24", 51821


@dataclass(frozen=True)
class Layout:
    """Addresses of the links.

    Attributes:
        outer_range: Of the layer that the hub forwards.
        inner_range: Of the layer between sites.
        inner_port: UDP port of the inner layer at each site.
    """

    outer_range: str = OUTER_RANGE
    inner_range: str = INNER_RANGE
    inner_port: int = INNER_PORT


def create(name: str, cards: Sequence[Card], layout: Layout, hub: tuple[str, str] | None) -> Roster:
    """Version 1 of a federation.

    Args:
        name: Of the federation.
        cards: Of its sites.
        layout: Ranges of addresses.
        hub: Endpoint and WireGuard public key of the hub; None where all sites are public.

    Raises:
        RosterError: the parts do not fit together.
        ConfigurationError: a range cannot be used.
    """
    outer = _addresses("outer_range", layout.outer_range, 1) if hub is not None else None
    the_hub = Hub(hub[0], hub[1], next(outer)) if hub is not None and outer is not None else None
    # The first address is the hub's in the outer range: a site's last numbers are the same in both.
    inner = _addresses("inner_range", layout.inner_range, 2)
    cards = sorted(cards, key=lambda card: card.name)
    return Roster(
        federation=name,
        version=1,
        previous=None,
        hub=the_hub,
        inner_range=layout.inner_range,
        outer_range=layout.outer_range if hub is not None else None,
        inner_port=layout.inner_port,
        sites=tuple(_with_addresses(cards, inner, outer)),
    )


def add(roster: Roster, cards: Sequence[Card]) -> Roster:
    """The next version, with more sites, at addresses that no version before has given to a site.

    Raises:
        RosterError: a site is there already, or the parts do not fit together.
        ConfigurationError: no address is left.
    """
    there = [card.name for card in cards if card.name in roster.names]
    if there:
        raise RosterError(
            f"site {there[0]} is in version {roster.version} of federation {roster.federation} already; to give it new "
            "keys, revoke it first"
        )
    first = _addresses_given(roster) + 1
    inner = _addresses("inner_range", roster.inner_range, first)
    outer = None if roster.outer_range is None else _addresses("outer_range", roster.outer_range, first)
    return _next(roster, (*roster.sites, *_with_addresses(cards, inner, outer)))


def revoke(roster: Roster, names: Sequence[str]) -> Roster:
    """The next version, without some sites.

    Raises:
        RosterError: one is not there, or fewer than two are left.
    """
    revoked = [roster.site(name) for name in names]
    return _next(roster, tuple(site for site in roster.sites if site not in revoked))


def collect(rosters: Sequence[Roster]) -> Roster:
    """One roster with the signatures of all.

    Raises:
        RosterError: they are not the same version of the same federation.
    """
    first = rosters[0]
    for other in rosters[1:]:
        if (other.federation, other.version) != (first.federation, first.version):
            raise RosterError(
                f"one file has version {first.version} of federation {first.federation}, another one version "
                f"{other.version} of {other.federation}: collect signatures of one version"
            )
        if other.digest != first.digest:
            raise RosterError(
                f"the files have two different versions {first.version} of federation {first.federation}: one of them "
                "was altered on its way, and its signatures are for something else; find out which, by telephone"
            )
        first = first.with_signatures(other.signatures)
    return first


def _next(roster: Roster, sites: tuple[RosterSite, ...]) -> Roster:
    return replace(
        roster,
        version=roster.version + 1,
        previous=roster.digest.hex(),
        sites=sites,
        signatures={},
        addresses_given=_addresses_given(roster),
    )


def _with_addresses(cards: Sequence[Card], inner: Iterator[str], outer: Iterator[str] | None) -> Iterator[RosterSite]:
    for card in cards:
        yield RosterSite(card, next(inner), None if outer is None else next(outer))


def _addresses_given(roster: Roster) -> int:
    """The highest number of a host that a version and those before it have given."""
    inner, outer = roster.inner_range, roster.outer_range
    there = [_number(site.inner_address, inner) for site in roster.sites]
    if roster.hub is not None and outer is not None:
        there += [_number(site.outer_address, outer) for site in roster.sites if site.outer_address is not None]
        there.append(_number(roster.hub.address, outer))
    return max(roster.addresses_given, *there)


def _number(address: str, network: str) -> int:
    return int(IPv4Address(address)) - int(IPv4Network(network).network_address)


def _addresses(option: str, text: str, first: int) -> Iterator[str]:
    """Addresses of a range in ascending order, beginning with the host of a number."""
    for host in islice(checked_range(option, text).hosts(), first - 1, None):
        yield str(host)
    raise ConfigurationError(
        f"{option} {text} has too few addresses for these sites, since none is given a second time; a new federation "
        "may have a larger range"
    )
