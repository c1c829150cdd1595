"""Sessions of several sites in one process, with secrets that a test can name."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.session import Session


def names(n_sites: int) -> list[str]:
    """Names whose order by text is not that of their numbers."""
    return [f"site-{n}" for n in range(n_sites)]


def secret(a: str, b: str, label: str = "") -> bytes:
    """The secret of two sites."""
    return hashlib.sha256(f"{min(a, b)}/{max(a, b)}/{label}".encode()).digest()


def session(site: str, members: Sequence[str], label: str = "") -> Session:
    """What a site shares with every other one; ``label`` tells sessions apart."""
    secrets = {other: secret(site, other, label) for other in members if other != site}
    return Session(secrets, hashlib.sha256(label.encode()).digest())


def masks_of(n_sites: int, label: str = "", min_sites: int = 2) -> dict[str, Masks]:
    """The masks of every site."""
    members = names(n_sites)
    return {site: Masks(site, members, session(site, members, label), min_sites) for site in members}
