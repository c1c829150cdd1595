"""The private links of a site, from the roster that all sites have signed and from the site's own keys."""

from __future__ import annotations

from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.site_kit.membership import Member
from lightning_parablock.site_kit.wireguard import alias, inner_interface, outer_interface


def links_of(member: Member) -> PrivateLinks:
    """The addresses that the roster gives to its sites and the hub."""
    roster, identity = member
    layers = [inner_interface(roster)] if roster.hub is None else [outer_interface(roster), inner_interface(roster)]
    return PrivateLinks(
        federation=f"version {roster.version} of federation {roster.federation}",
        site=identity.card.name,
        inner={one.name: one.inner_address for one in roster.sites},
        outer={one.name: one.outer_address for one in roster.sites if one.outer_address is not None},
        hub=None if roster.hub is None else roster.hub.address,
        files=tuple(f"{identity.folder / layer}.conf" for layer in layers),
        alias=alias(roster),
    )
