"""The private links of a site, from the roster that all sites have signed and from the site's own keys."""

from __future__ import annotations

from pathlib import Path

from lightning_parablock.checks import require
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.site_kit.identity import Identity, default_folder
from lightning_parablock.site_kit.membership import require_joinable
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.wireguard import inner_interface, outer_interface


def links_of(path: Path, keys: Path | None, site: str) -> PrivateLinks:
    """Read and verify a roster, and take the addresses from it.

    Args:
        path: Of ``federation.yaml``.
        keys: Folder of the site's keys; None for the usual one.
        site: Name of the site.

    Raises:
        ConfigurationError: the roster was altered, lacks a signature, is older than one that this site has seen, or has
            another card for the site than that of its keys.
    """
    roster = Roster.read(path)
    identity = Identity.read(keys or default_folder(site))
    require(
        identity.card.name == site,
        f"site={site!r}, and the keys in {identity.folder} are those of site {identity.card.name!r}: give the right "
        "site, or name the folder of its keys with the option keys",
    )
    require_joinable(roster, identity)
    layers = [inner_interface(roster)] if roster.hub is None else [outer_interface(roster), inner_interface(roster)]
    return PrivateLinks(
        federation=f"version {roster.version} of federation {roster.federation}",
        site=site,
        inner={one.name: one.inner_address for one in roster.sites},
        outer={one.name: one.outer_address for one in roster.sites if one.outer_address is not None},
        hub=None if roster.hub is None else roster.hub.address,
        up=", ".join(f"wg-quick up {identity.folder / layer}.conf" for layer in layers),
    )
