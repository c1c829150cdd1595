"""Whether the parts of a roster fit together."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from lightning_parablock.errors import ConfigurationError, RosterError
from lightning_parablock.site_kit.endpoints import LAST_PORT, checked_range
from lightning_parablock.site_kit.roster_parts import Hub, RosterSite, check_address

FEWEST_SITES, MOST_SITES = 2, 250
LAST_VERSION = 999_999_999
_NAME = re.compile(r"[a-z][a-z0-9-]{0,7}[a-z0-9]|[a-z]")


def check_federation_name(name: str) -> None:
    """Raise a RosterError unless WireGuard interfaces can be named after a federation.

    Linux allows 15 characters, of which "-outer" takes six.
    """
    if _NAME.fullmatch(name) is None:
        raise RosterError(
            "a federation must have a name of 1 to 9 lower-case letters, digits and hyphens that begins with a letter "
            f"and does not end with a hyphen, since network interfaces are named after it, got {name!r:.60}"
        )


def check_numbers(version: int, inner_port: int) -> None:
    """Raise a RosterError unless the numbers can be a version and a UDP port."""
    if not 1 <= version <= LAST_VERSION:
        raise RosterError(f"a version is a number from 1 to {LAST_VERSION:,}, got {version}")
    if not 1 <= inner_port <= LAST_PORT:
        raise RosterError(f"inner_port must be a UDP port from 1 to {LAST_PORT}, got {inner_port}")


def check_parts(hub: Hub | None, inner_range: str, outer_range: str | None, sites: Sequence[RosterSite]) -> None:
    """Raise a RosterError if there are too few or too many sites, if something is there twice, or is out of range."""
    if not FEWEST_SITES <= len(sites) <= MOST_SITES:
        raise RosterError(f"a federation needs {FEWEST_SITES} to {MOST_SITES} sites, got {len(sites)}")
    _check_addresses(hub, inner_range, outer_range, sites)
    folded = [site.name.casefold() for site in sites]
    _refuse_twice("site name (capitals do not count)", folded)
    link_keys = [key for site in sites for key in (site.card.outer_key, site.card.inner_key)]
    _refuse_twice("link key", [*link_keys, hub.key] if hub else link_keys)
    _refuse_twice("signing key", [site.card.signing_key for site in sites])
    if hub is None:
        _check_mesh(sites)


def _check_addresses(hub: Hub | None, inner_range: str, outer_range: str | None, sites: Sequence[RosterSite]) -> None:
    try:
        inner = checked_range("inner_range", inner_range)
        outer = checked_range("outer_range", outer_range) if outer_range is not None else None
    except ConfigurationError as error:
        raise RosterError(str(error)) from error
    if (hub is None) != (outer is None):
        raise RosterError("a hub and an outer_range belong together; one of them is missing")
    for site in sites:
        check_address(f"site {site.name}", site.inner_address, inner)
        if (site.outer_address is None) != (outer is None):
            raise RosterError(f"site {site.name} must have an outer address where there is a hub, and only there")
        if outer is not None and site.outer_address is not None:
            check_address(f"site {site.name}", site.outer_address, outer)
    _refuse_twice("inner address", [site.inner_address for site in sites])
    if hub is not None and outer is not None:
        if inner.overlaps(outer):
            raise RosterError(f"the ranges {inner} and {outer} overlap; the two layers need addresses of their own")
        check_address("the hub", hub.address, outer)
        _refuse_twice("outer address", [hub.address, *(site.outer_address or "" for site in sites)])


def _check_mesh(sites: Sequence[RosterSite]) -> None:
    lacking = [site.name for site in sites if site.card.endpoint is None]
    if lacking:
        raise RosterError(
            f"without a hub every site needs a public endpoint, and the card of {', '.join(lacking)} has none: name a "
            "hub with --hub-endpoint, or make the card again with site init --endpoint host:port"
        )
    _refuse_twice("endpoint", [(site.card.endpoint or "").casefold() for site in sites])


def _refuse_twice(what: str, values: Iterable[str]) -> None:
    seen = set[str]()
    for value in values:
        if value in seen:
            raise RosterError(f"the {what} {value} is there twice; each site, and the hub, must have its own")
        seen.add(value)
