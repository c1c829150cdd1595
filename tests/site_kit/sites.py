"""Identities and rosters for tests."""

from __future__ import annotations

from pathlib import Path

from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import encoded, new_link_keys
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import Hub, RosterSite

INNER, OUTER = "10.82.0.0/24", "10.81.0.0/24"


def identities(folder: Path, names: str = "abc", endpoint: str | None = None) -> dict[str, Identity]:
    """An identity for each letter; its folder is the letter. ``{name}`` in the endpoint becomes the letter."""
    return {
        name: Identity.create(folder / name, name, None if endpoint is None else endpoint.format(name=name))
        for name in names
    }


def hub() -> Hub:
    return Hub("hub.example.org:51820", new_link_keys().public, "10.81.0.1")


def unsigned(sites: dict[str, Identity], version: int = 1, hub_is: Hub | None = None) -> Roster:
    """A roster with a hub, of these sites, signed by none."""
    records = (
        RosterSite(site.card, f"10.82.0.{number}", f"10.81.0.{number}")
        for number, site in enumerate(sites.values(), start=2)
    )
    return Roster("wards", version, None, hub_is or hub(), INNER, OUTER, 51821, tuple(records))


def signed(roster: Roster, sites: dict[str, Identity]) -> Roster:
    """The roster with the signature of each of these sites."""
    made = {name: encoded(site.sign(roster.signed_bytes)) for name, site in sites.items()}
    return roster.with_signatures(made)
