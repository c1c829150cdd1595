"""The roster: signed by every site, and refused wherever it was altered."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_parablock.errors import RosterError
from lightning_parablock.site_kit.fingerprint import check_fingerprint
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import encoded
from lightning_parablock.site_kit.roster import MOST_ROSTER_BYTES, Roster
from tests.site_kit.sites import hub, identities, signed, unsigned


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Identity]:
    return identities(tmp_path_factory.mktemp("sites"), "abcd")


@pytest.fixture(scope="module")
def three(sites: dict[str, Identity]) -> dict[str, Identity]:
    return {name: sites[name] for name in "abc"}


@pytest.fixture(scope="module")
def roster(three: dict[str, Identity]) -> Roster:
    return signed(unsigned(three), three)


def test_the_file_comes_back(roster: Roster, tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text(roster.text)
    found = Roster.read(path)
    assert found == roster and found.text == roster.text and found.digest == roster.digest
    found.require_signed()


def test_comments_and_the_order_of_keys_change_nothing_that_is_signed(roster: Roster) -> None:
    head, _, tail = roster.text.partition("sites:")
    lines = [line for line in head.splitlines() if not line.startswith(("#", "version"))]
    assert Roster.parse("\n".join([*lines, "sites:"]) + tail + "version: 1 # the first\n").digest == roster.digest


def test_who_has_not_signed(three: dict[str, Identity]) -> None:
    bare = unsigned(three)
    assert bare.unsigned_by() == ("a", "b", "c")
    some = signed(bare, {"b": three["b"]})
    assert some.unsigned_by() == ("a", "c") and some.digest == bare.digest
    with pytest.raises(RosterError, match=r"version 1 of federation wards is not signed by a, c: .* site approve"):
        some.require_signed()


def test_every_changed_byte_is_noticed(three: dict[str, Identity]) -> None:
    """A space where one may be changes nothing; any other byte changes what is signed or breaks the file."""
    two = {name: three[name] for name in "ab"}
    roster = signed(unsigned(two), two)
    first = roster.text.index("federation: ")
    noticed = 0
    for at in range(first, len(roster.text)):
        other = "b" if roster.text[at] != "b" else "0"
        try:
            found = Roster.parse(roster.text[:at] + other + roster.text[at + 1 :])
        except RosterError:
            noticed += 1
        else:
            assert found == roster
    assert noticed > 0.95 * (len(roster.text) - first)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda text: text.replace("federation: wards", "federation: words"), id="name"),
        pytest.param(lambda text: text.replace("version: 1", "version: 2"), id="version"),
        pytest.param(lambda text: text.replace("previous: none", "previous: " + "0" * 64), id="previous"),
        pytest.param(lambda text: text.replace("hub.example", "hug.example"), id="endpoint"),
        pytest.param(lambda text: re.sub("key: .*", f"key: {hub().key}", text), id="hub's key"),
        pytest.param(lambda text: text.replace("10.81.0.1\n", "10.81.0.9\n"), id="hub's address"),
        pytest.param(lambda text: text.replace("10.81.0.0/24", "10.81.0.0/25"), id="outer range"),
        pytest.param(lambda text: text.replace("10.82.0.0/24", "10.82.0.0/25"), id="inner range"),
        pytest.param(lambda text: text.replace("inner_port: 51821", "inner_port: 51822"), id="port"),
        pytest.param(lambda text: text.replace("10.82.0.3", "10.82.0.9"), id="inner address"),
        pytest.param(lambda text: text.replace("10.81.0.3", "10.81.0.9"), id="outer address"),
    ],
)
def test_a_changed_field_makes_every_signature_wrong(roster: Roster, change: Callable[[str], str]) -> None:
    changed = change(roster.text)
    assert changed != roster.text
    with pytest.raises(RosterError, match=r"the signature of site a is wrong: .* was altered after a signed it"):
        Roster.parse(changed)
    unsigned_text = changed.partition("signatures:")[0] + "signatures: {}\n"
    assert Roster.parse(unsigned_text).digest != roster.digest, "the change itself makes sense"


def test_another_card_or_one_site_more_makes_every_signature_wrong(
    roster: Roster, sites: dict[str, Identity], tmp_path: Path
) -> None:
    stranger = Identity.create(tmp_path / "b", "b").card
    with pytest.raises(RosterError, match="the signature of site a is wrong"):
        Roster.parse(roster.text.replace(sites["b"].card.text, stranger.text))
    more = replace(roster.sites[0], card=sites["d"].card, inner_address="10.82.0.9", outer_address="10.81.0.9")
    with pytest.raises(RosterError, match="the signature of site a is wrong"):
        replace(roster, sites=(*roster.sites, more))
    with pytest.raises(RosterError, match="the signature of site a is wrong"):
        replace(roster, sites=roster.sites[:2])


def test_the_signature_of_another_site(roster: Roster, three: dict[str, Identity]) -> None:
    made = encoded(three["a"].sign(roster.signed_bytes))
    for site in "bc":
        with pytest.raises(RosterError, match=f"the signature of site {site} is wrong: another site made it"):
            unsigned(three, hub_is=roster.hub).with_signatures({site: made})
    with pytest.raises(RosterError, match="site 'z' is not in version 1 of federation wards, which has a, b, c"):
        roster.with_signatures({"z": made})
    for broken in ("", "x", encoded(bytes(63)), made + "AAAA"):
        with pytest.raises(RosterError, match="the signature of site 'a' is malformed"):
            roster.with_signatures({"a": broken})
    with pytest.raises(RosterError, match="the signature of site a is wrong"):
        roster.with_signatures({"a": encoded(bytes(64))})


def test_signatures_of_other_messages(roster: Roster, three: dict[str, Identity]) -> None:
    made = three["b"].sign(b"words")
    roster.verify("b", b"words", made)
    for site, message, signature in (("b", b"word", made), ("a", b"words", made), ("b", b"words", made[:-1])):
        with pytest.raises(RosterError, match=f"the signature of site {site} is wrong"):
            roster.verify(site, message, signature)
    with pytest.raises(RosterError, match="site 'd' is not in version 1"):
        roster.verify("d", b"words", made)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda text: "", "it is empty or cut off"),
        (lambda text: "- a\n", "line 1: a list, or too deep"),
        (lambda text: "federation", "it must be one mapping"),
        (lambda text: text + "---\na: b\n", "it must be one mapping"),
        (lambda text: f"word\n{text}", "line 2: mapping values are not allowed here|expected"),
        (lambda text: "word\n  a:\n" + text.partition("sites:")[2], "the roster is malformed: line"),
        (lambda text: "{}\n" + text, "the roster is malformed: line"),
        (lambda text: text + "version: 2\n", "'version' is given twice"),
        (lambda text: text + "more: 2\n", "'more' is not known there"),
        (lambda text: text.replace("version: 1", "x: 1"), "it has no 'version'"),
        (lambda text: text.replace("version: 1", "version: 01"), "version cannot be '01'"),
        (lambda text: text.replace("version: 1", "version: 0"), "version cannot be '0'"),
        (lambda text: text.replace("version: 1", "version: -1"), "version cannot be '-1'"),
        (lambda text: text.replace("version: 1", "version: &a 1"), "anchors, aliases and tags are not allowed"),
        (lambda text: text.replace("version: 1", "version: !!int 1"), "anchors, aliases and tags are not allowed"),
        (lambda text: text.replace("version: 1", "version: *a"), "anchors, aliases and tags are not allowed"),
        (lambda text: text.replace("version: 1", "version: {a: {b: {c: {d: {}}}}}"), "a list, or too deep"),
        (lambda text: text.replace("version: 1", "version: [1]"), "a list, or too deep"),
        (lambda text: text.replace("version: 1", "version: {a: b}"), "a mapping of 'a' is in the place of a text"),
        (lambda text: text.replace("previous: none", "previous: xyz"), "previous cannot be 'xyz'"),
        (lambda text: text.replace("federation: wards", "federation: Wards"), "must have a name of 1 to 9 lower-case"),
        (lambda text: text.replace("federation: wards", "federation: ../x"), "must have a name of 1 to 9 lower-case"),
        (lambda text: text.replace("51820", "51820\\nPostUp = x"), "hub's endpoint must be host:port"),
        (lambda text: re.sub("key: .*", "key: x", text), "the hub's key is malformed: it is not base64"),
        (lambda text: text.replace("10.81.0.1\n", "10.81.1.1\n"), r"10\.81\.1\.1 of the hub is not one for hosts"),
        (lambda text: text.replace("10.81.0.1\n", "10.81.0.01\n"), r"'10\.81\.0\.01' of the hub is no IPv4 address"),
        (lambda text: text.replace("10.82.0.3", "10.82.0.255"), "of site b is not one for hosts"),
        (lambda text: text.replace("10.82.0.3", "10.82.0.2"), r"the inner address 10\.82\.0\.2 is there twice"),
        (lambda text: text.replace("10.81.0.3", "10.81.0.1"), r"the outer address 10\.81\.0\.1 is there twice"),
        (lambda text: text.replace("10.82.0.", "10.81.0."), "overlap"),
        (lambda text: text.replace("10.82.0.", "8.8.0."), "inner_range must be within 10.0.0.0/8"),
        (lambda text: text.replace("10.82.0.0/24", "10.82.0.0/8"), "inner_range must be"),
        (lambda text: text.replace("\n  b:", "\n  x:"), "the card under 'x' is that of site b"),
        (lambda text: re.sub("card: (\\S+ c .*)....", "card: \\1", text), "card of site 'c', which may have been cut"),
        (lambda text: text.partition("  c:")[0].partition("  b:")[0] + "signatures: {}", "needs 2 to 250 sites, got 1"),
        (lambda text: text.partition("signatures:")[0] + "signatures: none", "must be mappings by site"),
        (lambda text: text.partition("hub:")[0] + text.partition("10.81.0.1\n")[2], "'outer_range' is not known there"),
        (lambda text: text[: len(text) // 2], "malformed|no card|cut"),
    ],
)
def test_what_is_no_roster(roster: Roster, tmp_path: Path, change: Callable[[str], str], named: str) -> None:
    changed = change(roster.text)
    assert changed != roster.text
    path = tmp_path / "federation.yaml"
    path.write_text(changed)
    with pytest.raises(RosterError, match=named) as found:
        Roster.read(path)
    assert str(found.value).startswith(f"{path}: ") and len(str(found.value)) < 600


def test_a_site_cannot_be_there_twice(roster: Roster, three: dict[str, Identity], sites: dict[str, Identity]) -> None:
    a, b, c = unsigned(three).sites
    card = sites["d"].card
    for named, record in (
        ("the site name .* a is there twice", replace(b, card=replace(card, name="A"))),
        ("the link key .* is there twice", replace(b, card=replace(card, outer_key=a.card.outer_key))),
        ("the link key .* is there twice", replace(b, card=replace(card, inner_key=a.card.outer_key))),
        ("the signing key .* is there twice", replace(b, card=replace(card, signing_key=a.card.signing_key))),
    ):
        with pytest.raises(RosterError, match=named):
            replace(unsigned(three), sites=(a, record, c))
    assert roster.hub is not None
    with pytest.raises(RosterError, match=r"the link key .* is there twice"):
        replace(unsigned(three), hub=replace(roster.hub, key=c.card.inner_key))


def test_without_a_hub_every_site_needs_an_endpoint_of_its_own(tmp_path: Path, three: dict[str, Identity]) -> None:
    public = identities(tmp_path, "abc", "{name}.example.org:51820")
    parts = {"hub": None, "outer_range": None}
    records = tuple(replace(site, outer_address=None) for site in unsigned(public).sites)
    roster = replace(unsigned(public), sites=records, **parts)
    assert Roster.parse(roster.text) == roster and "hub" not in roster.text.partition("federation: ")[2]
    hidden = tuple(replace(site, outer_address=None) for site in unsigned(three).sites)
    with pytest.raises(RosterError, match=r"without a hub every site needs a public endpoint.* a, b, c has none"):
        replace(roster, sites=hidden)
    same = replace(records[1], card=replace(records[1].card, endpoint="A.example.org:51820"))
    with pytest.raises(RosterError, match=r"the endpoint a\.example\.org:51820 is there twice"):
        replace(roster, sites=(records[0], same))
    with pytest.raises(RosterError, match="must have an outer address where there is a hub, and only there"):
        replace(unsigned(public), **parts)


def test_sizes_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "federation.yaml"
    path.write_text("#" * (MOST_ROSTER_BYTES + 1))
    with pytest.raises(RosterError, match="is larger than 262,144 bytes"):
        Roster.read(path)
    with pytest.raises(RosterError, match=r"cannot be read: No such file"):
        Roster.read(tmp_path / "none.yaml")
    with pytest.raises(RosterError, match=r"is malformed|list"):
        Roster.parse("[" * MOST_ROSTER_BYTES)


def test_the_fingerprint_is_short_and_says_everything(three: dict[str, Identity], roster: Roster) -> None:
    assert re.fullmatch(r"(\d{5} ){5}\d{5}", roster.fingerprint)
    assert Roster.parse(roster.text).fingerprint == roster.fingerprint
    other = replace(roster, version=2, signatures={})
    assert other.fingerprint != roster.fingerprint
    check_fingerprint(roster.fingerprint, roster.fingerprint.replace(" ", "-") + "\n")
    for wrong, named in (
        (other.fingerprint, "the fingerprint differs from that of this file"),
        (roster.fingerprint[:-1], "6 groups of 5 digits, all of them; got"),
        ("", "all of them"),
        ("yes", "all of them"),
        ("٣" * 30, "all of them"),
    ):
        with pytest.raises(RosterError, match=f"{named}.*nothing was signed"):
            check_fingerprint(roster.fingerprint, wrong)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given(st.integers(0, 2**32 - 1), st.text(alphabet="ab01:{}[]&*!#\n -'\"\\x", max_size=8))
def test_whatever_is_put_into_the_file_is_read_alike_or_refused(at: int, text: str) -> None:
    roster = _ROSTER[0]
    place = at % len(roster)
    try:
        found = Roster.parse(roster[:place] + text + roster[place:])
    except RosterError:
        return
    assert found.digest == Roster.parse(roster).digest


_ROSTER: list[str] = []


@pytest.fixture(scope="module", autouse=True)
def _keep(roster: Roster) -> None:
    _ROSTER.append(roster.text)
