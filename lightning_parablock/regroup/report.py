"""What a site reports when a regroup begins, and what the coordinator decides from all reports."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.log import MembershipLog, Record

Label = tuple[Key, int]
"""A version of a piece of server state: the exchange after which it was taken, and the generation that served it."""


@dataclass(frozen=True)
class Standing:
    """Where a member stands within one generation.

    Attributes:
        log: The log up to the generation.
        landed: Newest exchange that has landed here together with every one before it.
        served: For each block the versions of the member's own piece of server state that it still has, oldest first;
            empty where the server keeps no state.
        backups: The same for pieces of other servers, by block and client id of the server.
    """

    log: MembershipLog
    landed: Key = BEFORE_ALL
    served: Mapping[int, tuple[Label, ...]] = field(default_factory=dict[int, tuple[Label, ...]])
    backups: Mapping[tuple[int, int], tuple[Label, ...]] = field(
        default_factory=dict[tuple[int, int], tuple[Label, ...]]
    )


@dataclass(frozen=True)
class Report:
    """A site's answer to "prepare".

    Attributes:
        site: Name of the site.
        client: Its client id; None for a site that the run has never had.
        opened: Where it stands in the newest generation that it has opened; None for a site that holds nothing.
        acknowledged: Where it would stand in a newer generation that it has acknowledged and not opened; or None.
        started: Newest round that its training has started; -1 for none.
        is_leaving: Whether it gives what it has and goes.
        samples: Number of its training samples.
        checkpoint_round: For a founder: round at which the checkpoint begins that it would continue from; -1 for none.
    """

    site: str
    client: int | None
    opened: Standing | None
    acknowledged: Standing | None
    started: int = -1
    is_leaving: bool = False
    samples: int = 0
    checkpoint_round: int = -1


@dataclass(frozen=True)
class Source:
    """Where the new servers get a piece of server state from.

    Attributes:
        block: Index of the block.
        server: Client id of the server in the generation before, which names the piece's place in the block.
        holder: Client id of the member that has it; None for the initial value.
        label: The version to take; None for the initial value.
    """

    block: int
    server: int
    holder: int | None
    label: Label | None


@dataclass(frozen=True)
class Decision:
    """What a regroup leads to.

    Attributes:
        record: The record of the new generation.
        log: The log with it.
        landed: For each survivor and leaver the newest exchange that had landed there.
        donor: Client id of the member from which survivors take kept commits that they lack, and joiners W; None where
            the run is founded and nobody holds W yet.
        sources: For servers with state: where each piece comes from.
    """

    record: Record
    log: MembershipLog
    landed: Mapping[int, Key]
    donor: int | None
    sources: tuple[Source, ...] = ()
