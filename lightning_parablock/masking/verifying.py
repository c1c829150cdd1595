"""From the statements of all members to a session: nothing is masked before every one of them has been verified."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from lightning_parablock.errors import RosterError, StatementError
from lightning_parablock.masking.agreement import SessionKey
from lightning_parablock.masking.session import MIN_SITES, Session, refuse_too_few
from lightning_parablock.masking.statements import SignedStatement, Statement
from lightning_parablock.site_kit.roster import Roster

_EQUAL = {
    "run": "another run",
    "roster": "another version of the federation",
    "generation": "another generation",
    "members": "other members",
    "kept": "other exchanges that count",
    "dropped": "other exchanges that do not count",
}
"""What all members must state alike, and what it is called where they do not."""


def session_of(
    own: SignedStatement,
    key: SessionKey,
    received: Sequence[SignedStatement],
    roster: Roster,
    min_sites: int = MIN_SITES,
) -> tuple[Session, Mapping[str, bytes]]:
    """Verify the statements of all members and agree on a secret with each. Nothing is masked before.

    Args:
        own: This site's statement.
        key: The session key that it names.
        received: The other members' statements, in any order; this site's own may be among them.
        roster: The federation's signed roster.
        min_sites: Least number of sites in a sum.

    Returns:
        The session, and each member's identifier, for :func:`~lightning_parablock.masking.stretches.context_of`.

    Raises:
        StatementError: a statement is missing, is there twice, is forged, is of a stranger, or states something else;
            names the site.
        TooFewSitesError: fewer members than ``min_sites``.
        RosterError: not every site has signed the roster.
    """
    roster.require_signed()
    _refuse_own_mistakes(own.statement, key, roster, min_sites)
    statements = _by_site(own, received)
    for signed in statements.values():
        _verify(signed, own.statement, roster)
    _refuse_shared_keys(statements)
    secrets = {
        site: key.secret_with(signed.statement.session_key, site)
        for site, signed in statements.items()
        if site != own.statement.site
    }
    identifiers = {site: signed.statement.identifier for site, signed in statements.items()}
    return Session(secrets, _salt_of(statements)), identifiers


def _refuse_own_mistakes(own: Statement, key: SessionKey, roster: Roster, min_sites: int) -> None:
    refuse_too_few(own.members, min_sites, f"generation {own.generation}")
    if own.site not in own.members or own.session_key != key.public or own.roster != roster.digest:
        raise StatementError(f"site {own.site!r} states what is not so of itself; this is an error of its own process")


def _by_site(own: SignedStatement, received: Sequence[SignedStatement]) -> dict[str, SignedStatement]:
    statements = {own.statement.site: own}
    for signed in received:
        site = signed.statement.site
        if site not in own.statement.members:
            raise StatementError(
                f"site {site!r} has sent a statement and is no member of generation {own.statement.generation}, which "
                f"has {', '.join(own.statement.members)}"
            )
        if signed != own and site in statements:
            raise StatementError(f"there are two statements of site {site!r}; one of them is old, or not its own")
        statements[site] = signed
    missing = [site for site in own.statement.members if site not in statements]
    if missing:
        raise StatementError(
            f"there is no statement of {', '.join(missing)} for generation {own.statement.generation}; nothing is "
            "masked before every member has stated with whom it takes part"
        )
    return dict(sorted(statements.items()))


def _verify(signed: SignedStatement, own: Statement, roster: Roster) -> None:
    stated = signed.statement
    try:
        roster.verify(stated.site, stated.signed_bytes, signed.signature)
    except RosterError as error:
        raise StatementError(f"the statement of site {stated.site!r} cannot be trusted: {error}") from error
    for name, other in _EQUAL.items():
        if getattr(stated, name) != getattr(own, name):
            raise StatementError(
                f"site {stated.site!r} states {other}: {_shown(getattr(stated, name))}, and this site "
                f"{_shown(getattr(own, name))}; an old statement may have been sent again, or the sites were told "
                "different things; nothing was masked"
            )


def _refuse_shared_keys(statements: Mapping[str, SignedStatement]) -> None:
    owners: dict[bytes, str] = {}
    for site, signed in statements.items():
        other = owners.setdefault(signed.statement.session_key, site)
        if other != site:
            raise StatementError(f"sites {other!r} and {site!r} state the same session key; each must make its own")


def _salt_of(statements: Mapping[str, SignedStatement]) -> bytes:
    """SHA-256 of the statements and signatures, sorted by site, each after its length."""
    digest = hashlib.sha256()
    for signed in statements.values():
        for part in (signed.statement.signed_bytes, signed.signature):
            digest.update(len(part).to_bytes(8, "big") + part)
    return digest.digest()


def _shown(value: object) -> str:
    return (value.hex() if isinstance(value, bytes) else str(value))[:80]
