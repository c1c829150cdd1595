"""Who coordinates a regroup, how its generation is numbered, and which client ids joiners get."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from lightning_parablock.errors import MembershipError
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Report


@dataclass(frozen=True)
class Candidate:
    """A site in the arbiter's list.

    Attributes:
        site: Its name.
        client: Its client id; None for a site that is no member.
        generation: The newest generation that it has opened; -1 for none: it does not hold W.
    """

    site: str
    client: int | None = None
    generation: int = -1


def coordinator_of(candidates: Sequence[Candidate]) -> str:
    """Name of the site that drives a regroup.

    It is the one with the lowest client id among those of the newest generation; where no site holds W, the first name.

    Raises:
        MembershipError: there is no candidate.
    """
    if not candidates:
        raise MembershipError("the arbiter's list is empty: no site can coordinate a regroup")
    newest = max(one.generation for one in candidates)
    holders = [one for one in candidates if one.generation == newest]
    return min(holders, key=lambda one: (one.client is None, one.client or 0, one.site)).site


def next_generation(sealed: Iterable[int]) -> int:
    """Number for an attempt at a regroup: one more than the newest generation that any site has sealed."""
    return 1 + max(sealed, default=-1)


def free_client(log: MembershipLog, taken: Iterable[int] = ()) -> int:
    """The lowest client id that no site of the run has ever had and that is not in ``taken``."""
    used = {*taken, *(log.newest.sites if log.records else ()), *(log.newest.members if log.records else ())}
    return next(client for client in range(len(used) + 1) if client not in used)


def clients_of_joiners(log: MembershipLog, joiners: Sequence[Report]) -> tuple[dict[int, Report], dict[str, str]]:
    """Client ids of sites that are not members now.

    A site that the run has had keeps its id. A new one gets the id that it asks for, or else the lowest free one; where
    several come at once, those that ask are served first, and the others in the order of their names.

    Args:
        log: The run's log; it must not be empty.
        joiners: Their reports.

    Returns:
        Reports by client id, and for each site that is refused the reason.
    """
    admitted: dict[int, Report] = {}
    refused: dict[str, str] = {}
    owners = dict(log.newest.sites)
    for report in sorted(joiners, key=lambda one: (one.client is None, one.site)):
        own, asked = log.client_of(report.site), report.client
        if own is not None and asked not in (None, own):
            refused[report.site] = f"it asks for client id {asked}, and has been client {own} of this run: keep that id"
            continue
        if own is None and asked is not None and (asked in owners or asked < 0):
            refused[report.site] = (
                f"it asks for client id {asked}, which belongs to site {owners[asked]!r}: start it again for another id"
                if asked in owners
                else f"client id {asked} is negative: give it another id, or none"
            )
            continue
        client = own if own is not None else asked if asked is not None else free_client(log, owners)
        admitted[client], owners[client] = report, report.site
    return admitted, refused


def unfit_joiners(sites: Iterable[str], roster: Collection[str] | None, most: int | None) -> dict[str, str]:
    """Sites that may not join, each with the reason.

    Args:
        sites: Those that ask to.
        roster: Names of those that may take part; None for any.
        most: How many more members there may be: the first by name; None for any number.
    """
    strangers = [] if roster is None else [site for site in sites if site not in roster]
    fit = sorted(site for site in sites if site not in strangers)
    left_over = [] if most is None else fit[max(most, 0) :]
    return {
        **dict.fromkeys(
            strangers,
            "it is not in the roster of the federation with which the run began; start a run with a roster that has it",
        ),
        **dict.fromkeys(
            left_over,
            "the run has as many sites as one secure sum can hold; take bytes_per_value=2, or wait until a site leaves",
        ),
    }
