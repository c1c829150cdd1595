"""Which sites of an elastic run are members: in numbers, in words, and as the gaps in which one was none."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from lightning_parablock.elastic.journal import Line
from lightning_parablock.regroup.log import MembershipLog

MEMBERS, GENERATION = "membership/members", "membership/generation"
_MOST_CHARACTERS = 24
"""Names of the sites that are in are shown up to this length."""


@dataclass(frozen=True)
class Gap:
    """A time in which a client was no member.

    Attributes:
        client: Its client id.
        start_s: When the generation without it opened, seconds of ``time.time()``.
        end_s: When it was admitted, or the end of what is known.
        why: Why it was none: "lost: ...", "left", or "not there yet".
    """

    client: int
    start_s: float
    end_s: float
    why: str

    @property
    def length_s(self) -> float:
        """Its length in seconds."""
        return self.end_s - self.start_s


def sites_that_are_in(strategy: Any) -> dict[str, str]:
    """For a progress bar: members of all sites that the run has ever had; empty with a fixed membership."""
    log: MembershipLog | None = getattr(strategy, "membership_log", None)
    if log is None or not log.records:
        return {}
    record = log.newest
    names = ", ".join(sorted(record.sites[client] for client in record.members))
    shown = f" ({names})" if len(names) <= _MOST_CHARACTERS else ""
    return {"sites": f"{len(record.members)}/{len(record.sites)}{shown}"}


def membership_of(strategy: Any, round_index: int) -> dict[str, float]:
    """The membership of a round by its logged names; empty with a fixed membership."""
    log: MembershipLog | None = getattr(strategy, "membership_log", None)
    if log is None or not log.records:
        return {}
    record = next((one for one in reversed(log.records) if one.first_round <= round_index), log.records[0])
    return {MEMBERS: float(len(record.members)), GENERATION: float(record.generation)}


def gaps(lines: Iterable[Line], end_s: float) -> list[Gap]:
    """The times in which clients were no members, by client and time.

    Args:
        lines: What a site has noted, oldest first. Generations that opened before the site came have the time at which
            it was told of them, so that gaps among them have no length and are left out.
        end_s: End of what is known, seconds of ``time.time()``.
    """
    opened = [(line.time_s, line.record) for line in lines if line.record is not None]
    if not opened:
        return []
    clients = sorted(opened[-1][1].sites)
    open_since = {client: (opened[0][0], "not there yet") for client in clients}
    found = list[Gap]()
    for time_s, record in opened:
        for client in clients:
            if client in record.members and client in open_since:
                start_s, why = open_since.pop(client)
                found.append(Gap(client, start_s, time_s, why))
            elif client in record.gone:
                open_since[client] = (time_s, record.gone[client])
    found += [Gap(client, start_s, end_s, why) for client, (start_s, why) in open_since.items()]
    return sorted((gap for gap in found if gap.length_s > 0), key=lambda gap: (gap.client, gap.start_s))


def lines_of(strategy: Any) -> Sequence[Line]:
    """What the site of a strategy has noted; empty with a fixed membership."""
    return getattr(strategy, "membership_lines", ())
