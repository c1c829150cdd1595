"""What a site states before it masks: in which run and generation it takes part, with whom, and with which key.

Each member signs its own statement with the key on its card and reads everybody else's. A member that has been told
something else, by whomever, is noticed here, before anything is masked.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, TypeVar

from lightning_parablock.checks import check_site_name
from lightning_parablock.errors import ConfigurationError, StatementError
from lightning_parablock.masking.agreement import PUBLIC_BYTES
from lightning_parablock.regroup.keys import Key
from lightning_parablock.site_kit.identity import Identity
from lightning_parablock.site_kit.keys import SIGNATURE_BYTES, decoded, encoded
from lightning_parablock.system.reading import reading

MOST_BYTES = 1 << 16
"""Longest signed statement: 256 members with the longest names, and more exchanges than can be under way."""

_TAG = b"lightning-parablock statement 1\n"
"""Begins what is signed: no other message of a site begins like this."""
_DIGEST_BYTES = 32
_MOST_NUMBER = 1 << 62
_MOST_RUN = 200
V = TypeVar("V", str, Key)
_FIELDS = ("site", "run", "roster", "generation", "members", "kept", "dropped", "session_key", "identifier")


@dataclass(frozen=True)
class Statement:
    """One member's statement at the start of its process or of a generation.

    Attributes:
        site: Name of the member.
        run: Id of the run.
        roster: Digest of the federation's roster, 32 bytes.
        generation: Of the membership; 0 where it is fixed.
        members: Names of all members, sorted.
        kept: Exchanges of the generation before that count, sorted.
        dropped: Exchanges that were under way and do not count, sorted.
        session_key: Public X25519 key, made for this statement.
        identifier: Of the member's record of contributions
            (:meth:`~lightning_parablock.masking.submissions.Submissions.identifier`), 32 bytes.
    """

    site: str
    run: str
    roster: bytes
    generation: int
    members: tuple[str, ...]
    kept: tuple[Key, ...]
    dropped: tuple[Key, ...]
    session_key: bytes
    identifier: bytes

    @property
    def signed_bytes(self) -> bytes:
        """What is signed: one spelling for each statement."""
        said = json.dumps(self.as_plain(), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return _TAG + said.encode("ascii")

    def as_plain(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "site": self.site,
            "run": self.run,
            "roster": encoded(self.roster),
            "generation": self.generation,
            "members": list(self.members),
            "kept": [list(key) for key in self.kept],
            "dropped": [list(key) for key in self.dropped],
            "session_key": encoded(self.session_key),
            "identifier": encoded(self.identifier),
        }

    @classmethod
    def of_plain(cls, said: Any) -> Statement:
        """What :meth:`as_plain` has made.

        Raises:
            LookupError, TypeError, ValueError: it is something else.
        """
        if type(said) is not dict or sorted(said) != sorted(_FIELDS):
            raise ValueError(f"a statement has the fields {', '.join(_FIELDS)}")
        return cls(
            site=_site(said["site"]),
            run=_text(said["run"], _MOST_RUN),
            roster=decoded(_text(said["roster"]), _DIGEST_BYTES),
            generation=_number(said["generation"]),
            members=_ascending(map(_site, _list(said["members"]))),
            kept=_ascending(map(_key, _list(said["kept"]))),
            dropped=_ascending(map(_key, _list(said["dropped"]))),
            session_key=decoded(_text(said["session_key"]), PUBLIC_BYTES),
            identifier=decoded(_text(said["identifier"]), _DIGEST_BYTES),
        )


@dataclass(frozen=True)
class SignedStatement:
    """A statement with its member's Ed25519 signature.

    Attributes:
        statement: What is stated.
        signature: 64 bytes over :attr:`Statement.signed_bytes`.
    """

    statement: Statement
    signature: bytes

    @classmethod
    def by(cls, identity: Identity, statement: Statement) -> SignedStatement:
        """Sign this site's own statement."""
        return cls(statement, identity.sign(statement.signed_bytes))

    @property
    def text(self) -> bytes:
        """As it travels: JSON."""
        said = {"statement": self.statement.as_plain(), "signature": encoded(self.signature)}
        return json.dumps(said, separators=(",", ":")).encode("ascii")

    @classmethod
    def parse(cls, data: bytes, sender: str) -> SignedStatement:
        """What :attr:`text` has made; nothing is verified yet.

        Args:
            data: Bytes from another site.
            sender: Which one it is said to be, for messages.

        Raises:
            StatementError: it is something else, or too long.
        """
        what = f"the statement of site {sender!r:.70}"
        if len(data) > MOST_BYTES:
            raise StatementError(f"{what} has {len(data)} bytes, and at most {MOST_BYTES} are accepted")
        with reading(what, StatementError):
            said = json.loads(data)
            if type(said) is not dict or sorted(said) != ["signature", "statement"]:
                raise ValueError("it must have a statement and a signature")
            return cls(Statement.of_plain(said["statement"]), decoded(_text(said["signature"]), SIGNATURE_BYTES))


def _site(said: Any) -> str:
    name = _text(said)
    try:
        check_site_name(name)
    except ConfigurationError as error:
        raise ValueError(str(error)) from error
    return name


def _text(said: Any, most: int = MOST_BYTES) -> str:
    if type(said) is not str or not said.isascii() or len(said) > most:
        raise ValueError(f"{said!r:.60} is in the place of a text")
    return said


def _number(said: Any) -> int:
    if type(said) is not int or not 0 <= said < _MOST_NUMBER:
        raise ValueError(f"{said!r:.60} is in the place of a number")
    return said


def _key(said: Any) -> Key:
    round_index, block = _list(said)
    return _number(round_index), _number(block)


def _list(said: Any) -> list[Any]:
    if type(said) is not list:
        raise ValueError(f"{said!r:.60} is in the place of a list")
    return said


def _ascending(values: Iterable[V]) -> tuple[V, ...]:
    found = tuple(values)
    if any(not a < b for a, b in pairwise(found)):
        raise ValueError("a list is not sorted, or has something twice")
    return found
