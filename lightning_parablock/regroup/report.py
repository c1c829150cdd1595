"""What a site reports when a regroup begins, and what the coordinator decides from all reports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.lineage import Lineage
from lightning_parablock.regroup.log import MembershipLog, Record, as_key
from lightning_parablock.system.reading import reading

Label = tuple[Key, int]
"""A version of a piece of server state: the exchange after which it was taken, and the generation that served it.

The state with which a server begins a generation counts as served in that one, after the newest kept exchange.
"""


@dataclass(frozen=True)
class Standing:
    """What a member has within one generation.

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

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "log": self.log.to_json(),
            "landed": self.landed,
            "served": [[block, labels] for block, labels in self.served.items()],
            "backups": [[*piece, labels] for piece, labels in self.backups.items()],
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Standing:
        """What :meth:`to_json` wrote.

        Raises:
            ProtocolError: it is something else.
        """
        with reading("what a site has in a generation"):
            return cls(
                log=MembershipLog.from_json(said["log"]),
                landed=as_key(said["landed"]),
                served={int(block): _labels(labels) for block, labels in said["served"]},
                backups={(int(block), int(server)): _labels(labels) for block, server, labels in said["backups"]},
            )


@dataclass(frozen=True)
class Report:
    """A site's answer to "prepare".

    Attributes:
        site: Name of the site.
        client: The client id that it asks for where the run has never had it; None for any. A site that the run has had
            keeps its id.
        opened: What it has in the newest generation that it has opened; None for a site that holds nothing.
        acknowledged: What it would have in a newer generation that it has acknowledged and not opened; or None.
        started: Newest round that its training has started; -1 for none.
        is_leaving: Whether it gives what it has and goes.
        samples: Number of its training samples.
        checkpoint_round: For a founder: round at which the checkpoint begins that it would continue from; -1 for none.
        lineage: Of the run that saved this checkpoint; empty for none.
        noted: Lineage of the run of which the site has started a round before, and holds nothing any more: it must not
            found this run again without a checkpoint, nor from one of an ancestor. Empty for none.
    """

    site: str
    client: int | None
    opened: Standing | None
    acknowledged: Standing | None
    started: int = -1
    is_leaving: bool = False
    samples: int = 0
    checkpoint_round: int = -1
    lineage: Lineage = ()
    noted: Lineage = ()

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "site": self.site,
            "client": self.client,
            "opened": None if self.opened is None else self.opened.to_json(),
            "acknowledged": None if self.acknowledged is None else self.acknowledged.to_json(),
            "started": self.started,
            "is_leaving": self.is_leaving,
            "samples": self.samples,
            "checkpoint_round": self.checkpoint_round,
            "lineage": self.lineage,
            "noted": self.noted,
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Report:
        """What :meth:`to_json` wrote.

        Raises:
            ProtocolError: it is something else.
        """
        with reading("the report of a site"):
            return cls(
                site=str(said["site"]),
                client=None if said["client"] is None else int(said["client"]),
                opened=None if said["opened"] is None else Standing.from_json(said["opened"]),
                acknowledged=None if said["acknowledged"] is None else Standing.from_json(said["acknowledged"]),
                started=int(said["started"]),
                is_leaving=bool(said["is_leaving"]),
                samples=int(said["samples"]),
                checkpoint_round=int(said["checkpoint_round"]),
                lineage=tuple(str(run) for run in said["lineage"]),
                noted=tuple(str(run) for run in said["noted"]),
            )


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
            the run is founded and no site holds W yet.
        sources: For servers with state: where each piece comes from.
        refused: Sites that asked to join and may not, each with the reason.
    """

    record: Record
    log: MembershipLog
    landed: Mapping[int, Key]
    donor: int | None
    sources: tuple[Source, ...] = ()
    refused: Mapping[str, str] = field(default_factory=dict[str, str])

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        return {
            "log": self.log.to_json(),
            "landed": list(self.landed.items()),
            "donor": self.donor,
            "sources": [asdict(source) for source in self.sources],
            "refused": dict(self.refused),
        }

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Decision:
        """What :meth:`to_json` wrote.

        Raises:
            ProtocolError: it is something else.
        """
        with reading("a decision"):
            log = MembershipLog.from_json(said["log"])
            return cls(
                record=log.newest,
                log=log,
                landed={int(client): as_key(key) for client, key in said["landed"]},
                donor=None if said["donor"] is None else int(said["donor"]),
                sources=tuple(_source(one) for one in said["sources"]),
                refused={str(site): str(why) for site, why in said["refused"].items()},
            )


def _labels(said: Sequence[Any]) -> tuple[Label, ...]:
    return tuple(map(_label, said))


def _label(said: Sequence[Any]) -> Label:
    return as_key(said[0]), int(said[1])


def _source(said: Mapping[str, Any]) -> Source:
    return Source(
        block=int(said["block"]),
        server=int(said["server"]),
        holder=None if said["holder"] is None else int(said["holder"]),
        label=None if said["label"] is None else _label(said["label"]),
    )
