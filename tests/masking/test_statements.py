"""Statements of all members, and what is refused before anything is masked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_parablock.errors import RosterError, StatementError, TooFewSitesError
from lightning_parablock.masking.agreement import SessionKey
from lightning_parablock.masking.masks import Masks
from lightning_parablock.masking.ring import Ring
from lightning_parablock.masking.session import Session
from lightning_parablock.masking.statements import MOST_BYTES, SignedStatement, Statement
from lightning_parablock.masking.verifying import session_of
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.roster import Roster
from tests.site_kit.sites import identities, signed, unsigned

NAMES = ("a", "b", "c", "d")


class Federation:
    """Four sites with keys and statements, of which the first three are members."""

    def __init__(self, folder: Path) -> None:
        self.identities: dict[str, Identity] = identities(folder, "".join(NAMES))
        self.roster: Roster = signed(unsigned(self.identities), self.identities)
        self.keys = {name: SessionKey.new() for name in NAMES}
        self.members = NAMES[:3]

    def statement(self, site: str, **changes: Any) -> Statement:
        stated = Statement(
            site=site,
            run="run-1",
            roster=self.roster.digest,
            generation=3,
            members=self.members,
            kept=((4, 0), (4, 1)),
            dropped=((5, 0),),
            session_key=self.keys[site].public,
            identifier=site.encode() * 32,
        )
        return replace(stated, **changes)

    def signed(self, site: str, by: str = "", **changes: Any) -> SignedStatement:
        return SignedStatement.by(self.identities[by or site], self.statement(site, **changes))

    def session(self, site: str, *others: SignedStatement, min_sites: int = 3) -> Session:
        """The session at a site that has received statements; without any, of all other members."""
        received = others or [self.signed(other) for other in self.members if other != site]
        return session_of(self.signed(site), self.keys[site], received, self.roster, min_sites)[0]


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    return Federation(tmp_path_factory.mktemp("federation"))


def test_members_that_state_the_same_share_secrets_and_salt(federation: Federation) -> None:
    sessions = {site: federation.session(site) for site in federation.members}
    assert len({session.salt for session in sessions.values()}) == 1
    for one, session in sessions.items():
        assert sorted(session.secrets) == [other for other in federation.members if other != one]
        for other, secret in session.secrets.items():
            assert sessions[other].secrets[one] == secret
    assert len({secret for session in sessions.values() for secret in session.secrets.values()}) == 3
    total = torch.zeros(100, dtype=torch.int8)
    for site, session in sessions.items():
        message = torch.full((100,), 2, dtype=torch.int8)
        Masks(site, federation.members, session).apply(message, 0, 0, "values", 0)
        assert message.tolist() != [2] * 100
        Ring(1).add(total, message)
    assert total.tolist() == [6] * 100


def test_the_order_of_arrival_and_ones_own_statement_do_not_matter(federation: Federation) -> None:
    own, b, c = (federation.signed(site) for site in federation.members)
    expected = federation.session("a")
    assert federation.session("a", c, own, b) == expected
    _, identifiers = session_of(own, federation.keys["a"], [c, b], federation.roster)
    assert identifiers == {"a": b"a" * 32, "b": b"b" * 32, "c": b"c" * 32}


def test_the_salt_is_the_hash_of_all_that_was_signed(federation: Federation) -> None:
    sent = [federation.signed(site) for site in federation.members]
    parts = [part for one in sent for part in (one.statement.signed_bytes, one.signature)]
    hashed = hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).digest()
    assert federation.session("b").salt == hashed


def test_another_statement_gives_another_salt(federation: Federation) -> None:
    changed = [federation.signed(site, identifier=bytes(32)) for site in ("b", "c")]
    assert federation.session("a", *changed).salt != federation.session("a").salt


def test_statements_travel_as_they_are(federation: Federation) -> None:
    for site in NAMES:
        sent = federation.signed(site, members=NAMES, kept=(), dropped=())
        assert SignedStatement.parse(sent.text, site) == sent
    names = tuple(sorted(f"{n:03d}-{'x' * 60}" for n in range(256)))
    assert len(federation.signed("a", members=names, dropped=tuple((n, 1) for n in range(500))).text) < MOST_BYTES


REFUSED: dict[str, tuple[Callable[[Federation], SignedStatement], str]] = {
    "another run": (lambda f: f.signed("b", run="run-0"), "site 'b' states another run: run-0, and this site run-1"),
    "another roster": (lambda f: f.signed("b", roster=bytes(32)), "site 'b' states another version of the federation"),
    "another generation": (lambda f: f.signed("b", generation=2), "site 'b' states another generation: 2, and"),
    "other members": (lambda f: f.signed("b", members=NAMES), "site 'b' states other members"),
    "fewer members": (lambda f: f.signed("b", members=("b", "c")), "site 'b' states other members"),
    "other kept ones": (lambda f: f.signed("b", kept=((4, 0),)), "site 'b' states other exchanges that count"),
    "other dropped ones": (lambda f: f.signed("b", dropped=()), "site 'b' states other exchanges that do not count"),
    "signed by another member": (lambda f: f.signed("b", by="c"), "the statement of site 'b' cannot be trusted"),
    "signature of another text": (
        lambda f: replace(f.signed("b"), statement=f.statement("b", identifier=bytes(32))),
        "the statement of site 'b' cannot be trusted",
    ),
    "a stranger": (lambda f: f.signed("d"), "site 'd' has sent a statement and is no member of generation 3"),
    "not in the roster": (
        lambda f: SignedStatement.by(f.identities["b"], replace(f.statement("b"), site="nobody")),
        "site 'nobody' has sent a statement and is no member",
    ),
    "another site's session key": (
        lambda f: f.signed("b", session_key=f.keys["a"].public),
        "sites 'a' and 'b' state the same session key",
    ),
    "a key without a secret": (lambda f: f.signed("b", session_key=bytes(32)), "session key of site 'b' is no X25519"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_statement_that_is_not_what_it_must_be_is_refused(federation: Federation, name: str) -> None:
    make, message = REFUSED[name]
    with pytest.raises(StatementError) as refused:
        federation.session("a", make(federation), federation.signed("c"))
    assert message in str(refused.value)


def test_a_statement_is_missing_or_there_twice(federation: Federation) -> None:
    b, c = federation.signed("b"), federation.signed("c")
    with pytest.raises(StatementError, match="there is no statement of c for generation 3"):
        federation.session("a", b)
    with pytest.raises(StatementError, match="there are two statements of site 'b'"):
        federation.session("a", b, c, federation.signed("b", identifier=bytes(32)))
    with pytest.raises(StatementError, match="there are two statements of site 'b'"):
        federation.session("a", b, c, b)
    with pytest.raises(StatementError, match="there are two statements of site 'a'"):
        federation.session("a", b, c, federation.signed("a", identifier=bytes(32)))


def test_a_member_that_is_not_in_the_roster_is_refused(federation: Federation) -> None:
    members = ("a", "b", "nobody")
    stranger = replace(federation.statement("d"), site="nobody", members=members)
    received = [federation.signed("b", members=members), SignedStatement.by(federation.identities["d"], stranger)]
    with pytest.raises(StatementError, match=r"site 'nobody' cannot be trusted: .* is not in version 1 of federation"):
        session_of(federation.signed("a", members=members), federation.keys["a"], received, federation.roster)


def test_a_roster_that_not_all_have_signed_is_refused(federation: Federation) -> None:
    roster = replace(federation.roster, signatures={})
    received = [federation.signed(site) for site in ("b", "c")]
    with pytest.raises(RosterError, match="is not signed by a, b, c, d"):
        session_of(federation.signed("a"), federation.keys["a"], received, roster)


def test_too_few_members_are_refused(federation: Federation) -> None:
    with pytest.raises(TooFewSitesError, match=r"generation 3 has 3 sites \(a, b, c\), and a secure sum needs 4"):
        federation.session("a", min_sites=4)
    own = federation.signed("a", members=("a", "b"))
    with pytest.raises(TooFewSitesError, match="generation 3 has 2 sites"):
        session_of(own, federation.keys["a"], [federation.signed("b", members=("a", "b"))], federation.roster)


@pytest.mark.parametrize("change", [{"members": ("b", "c", "d")}, {"session_key": bytes(32)}, {"roster": bytes(32)}])
def test_a_site_does_not_state_what_is_not_so_of_itself(federation: Federation, change: dict[str, Any]) -> None:
    with pytest.raises(StatementError, match="an error of its own process"):
        session_of(federation.signed("a", **change), federation.keys["a"], [], federation.roster)


def without(said: dict[str, Any], name: str) -> dict[str, Any]:
    return {**said, "statement": {key: value for key, value in said["statement"].items() if key != name}}


def with_(said: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return {**said, "statement": {**said["statement"], **changes}}


MALFORMED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "no signature": (lambda said: {"statement": said["statement"]}, "must have a statement and a signature"),
    "more than both": (lambda said: {**said, "more": 1}, "must have a statement and a signature"),
    "a list": (lambda said: [said], "must have a statement and a signature"),
    "a short signature": (lambda said: {**said, "signature": said["signature"][:-4]}, "is malformed: it has"),
    "a field less": (lambda said: without(said, "run"), "a statement has the fields"),
    "a field more": (lambda said: with_(said, more=1), "a statement has the fields"),
    "a name that is none": (lambda said: with_(said, site="../a"), "site must be a name"),
    "a member that is none": (lambda said: with_(said, members=["a", 3]), "3 is in the place of a text"),
    "members in another order": (lambda said: with_(said, members=["b", "a"]), "is not sorted"),
    "a member twice": (lambda said: with_(said, members=["a", "a"]), "has something twice"),
    "a long run": (lambda said: with_(said, run="r" * 300), "in the place of a text"),
    "a generation as text": (lambda said: with_(said, generation="3"), "'3' is in the place of a number"),
    "a generation as a truth": (lambda said: with_(said, generation=True), "True is in the place of a number"),
    "a negative generation": (lambda said: with_(said, generation=-1), "-1 is in the place of a number"),
    "an endless generation": (lambda said: with_(said, generation=1 << 70), "in the place of a number"),
    "a key of three": (lambda said: with_(said, kept=[[1, 2, 3]]), "too many values"),
    "a short session key": (lambda said: with_(said, session_key="AAAA"), "it has 3 bytes instead of 32"),
    "another spelling": (lambda said: with_(said, session_key="A" * 42 + "B="), "stray bits"),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_a_malformed_statement_is_refused(federation: Federation, name: str) -> None:
    change, message = MALFORMED[name]
    said = change(json.loads(federation.signed("b").text))
    with pytest.raises(StatementError, match=message) as refused:
        SignedStatement.parse(json.dumps(said).encode(), "b")
    assert str(refused.value).startswith("the statement of site 'b'")


def test_a_statement_that_is_cut_or_too_long_is_refused(federation: Federation) -> None:
    text = federation.signed("b").text
    for cut in range(0, len(text), 7):
        with pytest.raises(StatementError, match="the statement of site 'b' is malformed"):
            SignedStatement.parse(text[:cut], "b")
    with pytest.raises(StatementError, match="has 65537 bytes, and at most 65536 are accepted"):
        SignedStatement.parse(text.ljust(MOST_BYTES + 1), "b")
    for nested in (b"[" * 60_000, b'{"statement":' * 5000, b"\xff", b""):
        with pytest.raises(StatementError, match="malformed"):
            SignedStatement.parse(nested, "b")
