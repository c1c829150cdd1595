"""The version of its federation, which all sites of a run must share: an older one may name a site that was revoked."""

from __future__ import annotations

from lightning_parablock.site_kit.membership import Member

VERSION = "the version of the federation"
ADVICE = {VERSION: "copy the newest federation.yaml to every site"}
"""What to do where facts of sites differ, by the name of the fact."""


def version_fact(member: Member | None) -> dict[str, str]:
    """The roster with which a site comes to a run, by the name of the fact; nothing without a federation."""
    if member is None:
        return {}
    roster = member.roster
    return {VERSION: f"version {roster.version} of federation {roster.federation} ({roster.digest.hex()[:16]})"}
