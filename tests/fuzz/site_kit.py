"""What other sites and the hub send by mail: cards and rosters; and the keys on the own disk."""

from __future__ import annotations

import tempfile
from pathlib import Path

from lightning_parablock.errors import CardError, IdentityError, RosterError
from lightning_parablock.site_kit.card import Card
from lightning_parablock.site_kit.federation import Layout, create, revoke
from lightning_parablock.site_kit.identity import KEYS, Identity
from lightning_parablock.site_kit.keys import new_link_keys
from lightning_parablock.site_kit.plain_yaml import read_plain
from lightning_parablock.site_kit.roster import Roster
from tests.fuzz.target import Target
from tests.site_kit.sites import identities, signed

_FOLDER = tempfile.TemporaryDirectory(prefix="parablock-fuzz-")
_SITES = identities(Path(_FOLDER.name), "abc", "{name}.example.org:51820")
_CARDS = [site.card for site in _SITES.values()]
_HUBS = create("wards", _CARDS, Layout(), ("hub.example.org:51820", new_link_keys().public))
_MESH = create("mesh", _CARDS, Layout(), None)
_ROSTERS = (_HUBS, signed(_HUBS, _SITES), signed(_MESH, _SITES), revoke(_HUBS, ["c"]))


def _text(data: bytes) -> str:
    """As the files are read; what is no UTF-8 is refused before."""
    return data.decode("utf-8", errors="replace")


def _read_roster(data: bytes) -> object:
    roster = Roster.parse(_text(data))
    assert Roster.parse(roster.text) == roster, "what was read comes back"
    return roster


def _read_card(data: bytes) -> object:
    card = Card.parse(_text(data))
    assert Card.parse(card.text) == card, "what was read comes back"
    return card


def _read_keys(data: bytes) -> object:
    (Path(_FOLDER.name) / "a" / KEYS).write_bytes(data)
    return Identity.read(Path(_FOLDER.name) / "a")


def _read_yaml(data: bytes) -> object:
    try:
        return read_plain(_text(data))
    except ValueError as error:  # which the roster turns into its own error
        raise RosterError(str(error)) from error


TARGETS = (
    Target("card", _read_card, (CardError,), tuple(card.text.encode() for card in _CARDS)),
    Target("roster", _read_roster, (RosterError,), tuple(roster.text.encode() for roster in _ROSTERS)),
    Target(
        "roster-yaml", _read_yaml, (RosterError,), (_ROSTERS[1].text.encode(), b"a: {b: {c: d}}", b"'a': \"\\x41\"")
    ),
    Target("keys", _read_keys, (IdentityError, CardError), ((Path(_FOLDER.name) / "a" / KEYS).read_bytes(),)),
)
