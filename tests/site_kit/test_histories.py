"""Random histories of a federation: no two sites ever share an address, and no member can be led back."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.errors import RosterError
from lightning_parablock.site_kit import federation
from lightning_parablock.site_kit.federation import Layout
from lightning_parablock.site_kit.keys import new_link_keys
from lightning_parablock.site_kit.membership import require_joinable
from lightning_parablock.site_kit.roster import Roster
from tests.site_kit.sites import identities, signed

NAMES = "abcde"
_FOLDER = tempfile.TemporaryDirectory(prefix="parablock-histories-")
SITES = identities(Path(_FOLDER.name), NAMES)
HUB = ("hub.example.org:51820", new_link_keys().public)


def next_version(roster: Roster, name: str) -> Roster | None:
    """The version without a site that is there, or with one that is not; None where too few would be left."""
    if name not in roster.names:
        return federation.add(roster, [SITES[name].card])
    return federation.revoke(roster, [name]) if len(roster.names) > 2 else None


@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(NAMES), max_size=8))
def test_every_version_follows_from_the_last_one(history: list[str]) -> None:
    versions = [federation.create("wards", [SITES[name].card for name in "abc"], Layout(), HUB)]
    for name in history:
        made = next_version(versions[-1], name)
        if made is not None:
            assert set(made.names) ^ set(versions[-1].names) == {name}
            versions.append(made)
    for number, (roster, previous) in enumerate(zip(versions, [None, *versions], strict=False), start=1):
        assert roster.version == number
        assert roster.previous == (None if previous is None else previous.digest.hex())
        outer = [site.outer_address for site in roster.sites]
        assert len({*outer, "10.81.0.1"}) == len(roster.sites) + 1
        assert len({site.inner_address for site in roster.sites}) == len(roster.sites)
        assert Roster.parse(roster.text) == roster
    owners = dict[str | None, tuple[str, int]]()
    for roster in versions:
        for site in roster.sites:
            came = next(n for n in range(roster.version, 0, -1) if n == 1 or site.name not in versions[n - 2].names)
            for address in (site.inner_address, site.outer_address):
                assert owners.setdefault(address, (site.name, came)) == (site.name, came)


@settings(max_examples=15, deadline=None, derandomize=True, database=None)
@given(st.lists(st.sampled_from(NAMES), min_size=1, max_size=4), st.permutations(range(5)))
def test_a_member_never_goes_back(history: list[str], arrival: list[int]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        member = identities(Path(folder), "z")["z"]
        sites = {**SITES, "z": member}
        roster = federation.create("wards", [sites[name].card for name in "abz"], Layout(), HUB)
        versions = [roster]
        for name in history:
            made = next_version(versions[-1], name)
            versions += [made] if made is not None else []
        whole = [signed(one, {name: sites[name] for name in one.names}) for one in versions]
        highest = 0
        for at in arrival:
            if at >= len(whole):
                continue
            if whole[at].version >= highest:
                require_joinable(whole[at], member)
                highest = whole[at].version
            else:
                with pytest.raises(RosterError, match="is older than version"):
                    require_joinable(whole[at], member)
