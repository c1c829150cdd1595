"""The private keys of a site: in one folder, for its owner alone."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import pytest

from lightning_parablock.errors import CardError, ConfigurationError, IdentityError
from lightning_parablock.site_kit.identity import KEYS, Identity, default_folder
from lightning_parablock.site_kit.keys import is_signature
from lightning_parablock.system.private_extra import not_installed


def test_keys_are_stored_for_the_owner_alone_and_come_back(tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "a"
    made = Identity.create(folder, "a", "a.example.org:51820")
    assert folder.stat().st_mode & 0o777 == 0o700
    assert [(path.name, path.stat().st_mode & 0o777) for path in folder.iterdir()] == [(KEYS, 0o600)]
    assert Identity.read(folder) == made
    assert made.card.name == "a" and made.card.endpoint == "a.example.org:51820"


def test_no_two_identities_share_a_key(tmp_path: Path) -> None:
    cards = [Identity.create(tmp_path / name, "a").card for name in ("x", "y")]
    assert len({key for card in cards for key in (card.outer_key, card.inner_key, card.signing_key)}) == 6


def test_private_keys_are_in_no_representation(tmp_path: Path) -> None:
    identity = Identity.create(tmp_path / "a", "a")
    shown = repr(identity) + repr(identity.outer) + str(identity.signing) + identity.card.text
    for pair in (identity.outer, identity.inner, identity.signing):
        assert pair.private not in shown


def test_its_signatures_fit_its_card(tmp_path: Path) -> None:
    identity, other = (Identity.create(tmp_path / name, name) for name in "ab")
    made = identity.sign(b"words")
    assert is_signature(identity.card.signing_key, b"words", made)
    assert not is_signature(identity.card.signing_key, b"other words", made)
    assert not is_signature(other.card.signing_key, b"words", made)


def test_keys_are_never_overwritten(tmp_path: Path) -> None:
    Identity.create(tmp_path / "a", "a")
    before = (tmp_path / "a" / KEYS).read_bytes()
    with pytest.raises(IdentityError, match="holds the keys of a site already; they are not overwritten"):
        Identity.create(tmp_path / "a", "b")
    assert (tmp_path / "a" / KEYS).read_bytes() == before
    assert len(list((tmp_path / "a").iterdir())) == 1


def test_a_wrong_name_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(CardError, match="site must be a name"):
        Identity.create(tmp_path / "a", "a b")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_read_is_refused(tmp_path: Path, mode: int) -> None:
    Identity.create(tmp_path / "a", "a")
    (tmp_path / "a" / KEYS).chmod(mode)
    with pytest.raises(IdentityError, match=rf"keys.json is open to other users \(mode 0{mode:o}\).* chmod 600"):
        Identity.read(tmp_path / "a")


def test_a_folder_that_others_can_enter_is_refused(tmp_path: Path) -> None:
    Identity.create(tmp_path / "a", "a")
    (tmp_path / "a").chmod(0o755)
    with pytest.raises(IdentityError, match=r"a is open to other users \(mode 0755\).* chmod 700"):
        Identity.read(tmp_path / "a")
    (tmp_path / "open").mkdir(mode=0o755)
    with pytest.raises(IdentityError, match=r"open to other users \(mode 0755\), and private keys go there"):
        Identity.create(tmp_path / "open", "a")


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"outer": "x"}, "it is not base64"),
        ({"signing": "QUJD"}, "it has 3 bytes instead of 32"),
        ({"inner": None}, "is malformed"),
        ({"name": 3}, "site must be a name"),
        ({"endpoint": "nowhere"}, "endpoint must be host:port"),
        ({"endpoint": 3}, "is malformed"),
    ],
)
def test_damaged_keys(tmp_path: Path, change: dict[str, object], named: str) -> None:
    Identity.create(tmp_path / "a", "a")
    path = tmp_path / "a" / KEYS
    path.write_text(json.dumps({**json.loads(path.read_text()), **change}))
    with pytest.raises((IdentityError, CardError), match=named):
        Identity.read(tmp_path / "a")


@pytest.mark.parametrize("text", ["", "{", "[]", "3", "{}", "[" * 3000])
def test_a_file_that_is_none_of_ours(tmp_path: Path, text: str) -> None:
    Identity.create(tmp_path / "a", "a")
    (tmp_path / "a" / KEYS).write_text(text)
    with pytest.raises(IdentityError, match=r"the file of keys .*keys\.json is malformed"):
        Identity.read(tmp_path / "a")


def test_no_keys_and_too_many_bytes(tmp_path: Path) -> None:
    with pytest.raises(IdentityError, match="holds no keys of a site: lightning-parablock site init NAME makes them"):
        Identity.read(tmp_path)
    Identity.create(tmp_path / "a", "a")
    (tmp_path / "a" / KEYS).write_text(" " * 5000)
    with pytest.raises(IdentityError, match="is larger than 4,096 bytes"):
        Identity.read(tmp_path / "a")


def test_the_default_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_folder("a") == tmp_path / ".lightning-parablock" / "a"


def test_without_cryptography_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(ConfigurationError, match=re.escape(str(not_installed()))):
        Identity.create(tmp_path / "a", "a")
    assert list(tmp_path.iterdir()) == []
