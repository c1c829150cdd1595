"""A site's own place in a roster, and the check of a roster before links or a run are made from it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from lightning_parablock.checks import require
from lightning_parablock.errors import IdentityError, RosterError
from lightning_parablock.site_kit.identity import KEYS, Identity, default_folder
from lightning_parablock.site_kit.memory import Memory
from lightning_parablock.site_kit.roster import Roster
from lightning_parablock.site_kit.roster_parts import RosterSite


class Member(NamedTuple):
    """A site of a federation, as its own process knows it.

    Attributes:
        roster: Of all sites.
        identity: Of this one.
    """

    roster: Roster
    identity: Identity


def own_site(roster: Roster, identity: Identity) -> RosterSite:
    """The record of a site in a roster.

    Raises:
        RosterError: the site is not there, or is there with other keys.
    """
    site = roster.site(identity.card.name)
    if site.card != identity.card:
        raise RosterError(
            f"version {roster.version} of federation {roster.federation} has another card for site {site.name} than "
            f"that of the keys in {identity.folder}: somebody has replaced it, or it is from older keys; do not use it"
        )
    return site


def find_identity(roster: Roster, folder: Path | None) -> Identity:
    """The identity of this machine that a roster names.

    Args:
        roster: The roster.
        folder: Of the keys; None to look in the default folders of all sites of the roster.

    Raises:
        IdentityError: there are no keys, several sites of the roster have keys here, or they cannot be used.
        RosterError: the site is not in the roster, see :func:`own_site`.
    """
    if folder is None:
        folder = _folder_here(roster)
    identity = Identity.read(folder)
    own_site(roster, identity)
    return identity


def read_member(path: Path, keys: Path | None, site: str) -> Member:
    """The roster of a run and the identity of the site that takes part in it here, checked and remembered.

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
    return Member(roster, identity)


def require_joinable(roster: Roster, identity: Identity) -> RosterSite:
    """Check all that a site must know before it makes links from a roster, or runs with it, and remember the roster.

    Returns:
        The site's own record.

    Raises:
        RosterError: a signature is missing, the version is older than one that the site knows, or the site is not in
            the roster with its own keys.
    """
    site = own_site(roster, identity)
    roster.require_signed()
    Memory(identity.folder, roster.federation).keep(roster)
    return site


def _folder_here(roster: Roster) -> Path:
    folders = [default_folder(name) for name in roster.names]
    found = [folder for folder in folders if (folder / KEYS).exists()]
    if len(found) == 1:
        return found[0]
    if found:
        raise IdentityError(f"several sites of this federation have keys here; choose with --keys: {_list(found)}")
    others = [folder.parent.name for folder in sorted(default_folder("").glob(f"*/{KEYS}"))]
    raise IdentityError(
        f"version {roster.version} of federation {roster.federation} has the sites {', '.join(roster.names)}, and none "
        f"of them has keys in {default_folder('')}, where those of {', '.join(others) or 'no site'} are: this site was "
        "removed or never added, or its keys are elsewhere; then name their folder with --keys"
    )


def _list(folders: list[Path]) -> str:
    return ", ".join(map(str, folders))
