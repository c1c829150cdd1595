"""In whose name a call counts: a desk knows its caller, and what a message says of its sender must be the same."""

from __future__ import annotations

from lightning_parablock.desk.service import Call
from lightning_parablock.errors import RefusedError
from lightning_parablock.regroup.log import MembershipLog


def client_of_caller(call: Call, *logs: MembershipLog) -> int:
    """Client id of the site that calls.

    Args:
        call: The call.
        *logs: What this site knows of the run: up to the open generation, and up to one that it could open. No log ever
            gives a client id to another site.

    Raises:
        RefusedError: the site is in none of them; its own log may be newer.
    """
    site = call.caller.site
    for log in logs:
        client = log.client_of(site)
        if client is not None:
            return client
    raise RefusedError(f"site {site[:80]!r} has no client id in the generations that this site knows", "not yet")


def refuse_other_client(call: Call, stated: int, *logs: MembershipLog) -> None:
    """Refuse what a site says in the name of another one's client; arguments as above.

    Raises:
        RefusedError: the stated client is not the caller's.
    """
    own = client_of_caller(call, *logs)
    if stated != own:
        raise RefusedError(
            f"site {call.caller.site!r} is client {own}, and cannot speak for client {stated}", "another's name"
        )


def refuse_other_site(call: Call, stated: str) -> None:
    """The same for the name of a site that has no client id yet."""
    if stated != call.caller.site:
        raise RefusedError(
            f"site {call.caller.site[:80]!r} cannot ask for a client id for site {stated[:80]!r}", "another's name"
        )
