"""The membership log: who took part when. All results of an elastic run are a function of it and of the run's seed.

A run's log has one record per generation that was opened. Everything that depends on the membership is computed from
it: who belongs to the cohort of a round, whose deltas an exchange sums, and who serves which part of a block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.system.reading import reading


@dataclass(frozen=True)
class Restored:
    """A piece of the server's state that was lost with its server.

    Attributes:
        block: Index of the block.
        server: Client id of the server that was lost.
        as_of: The exchange after which the state that replaces it was taken, and the generation in which that exchange
            was served; None where the piece starts again from its initial value.
    """

    block: int
    server: int
    as_of: tuple[Key, int] | None


@dataclass(frozen=True)
class Record:
    """One generation: a fixed list of members, from an opening to the next.

    Attributes:
        generation: Its number; numbers grow and may leave gaps.
        members: Client ids, ascending.
        joiners: Those members that did not continue from the generation before without a break, ascending; in the first
            record all of them.
        order: The members in the order in which they serve the shards of a block; in a star the first one serves all.
        first_round: n: rounds from this one on have cohorts of these members; earlier ones keep what they had.
        kept: Newest kept exchange: newer ones of earlier generations are redone. In the first record of a run that
            begins with a checkpoint it names the last block of the round before.
        sites: Name of each client's site, of all clients that the run has ever had.
        samples: Number of training samples of each joiner.
        gone: Why each member of the generation before is no member any more.
        restored: Lost pieces of the server's state.
        drops: Whether exchanges newer than ``kept``, of rounds before ``first_round``, are dropped and not redone, as
            with secure sums: a contribution may enter one sum alone.
    """

    generation: int
    members: tuple[int, ...]
    joiners: tuple[int, ...]
    order: tuple[int, ...]
    first_round: int
    kept: Key = BEFORE_ALL
    sites: Mapping[int, str] = field(default_factory=dict[int, str])
    samples: Mapping[int, int] = field(default_factory=dict[int, int])
    gone: Mapping[int, str] = field(default_factory=dict[int, str])
    restored: tuple[Restored, ...] = ()
    drops: bool = False

    def to_json(self) -> dict[str, Any]:
        """As plain values for JSON."""
        said = asdict(self)
        return said if self.drops else {name: value for name, value in said.items() if name != "drops"}

    def has_dropped(self, key: Key) -> bool:
        """Whether an exchange was under way when the generation opened, and counts for nothing."""
        return self.drops and self.kept < key and key[0] < self.first_round

    @classmethod
    def from_json(cls, said: Mapping[str, Any]) -> Record:
        """The record that :meth:`to_json` wrote.

        Raises:
            ProtocolError: it is no record.
        """
        with reading("the record of a generation"):
            return cls._from(said)

    @classmethod
    def _from(cls, said: Mapping[str, Any]) -> Record:
        return cls(
            generation=int(said["generation"]),
            members=_ids(said["members"]),
            joiners=_ids(said["joiners"]),
            order=_ids(said["order"]),
            first_round=int(said["first_round"]),
            kept=as_key(said["kept"]),
            sites={int(client): str(name) for client, name in said["sites"].items()},
            samples={int(client): int(n) for client, n in said["samples"].items()},
            gone={int(client): str(why) for client, why in said["gone"].items()},
            restored=tuple(_restored(one) for one in said["restored"]),
            drops=said.get("drops", False) is True,
        )


@dataclass(frozen=True)
class MembershipLog:
    """All generations of a run, oldest first; a log only ever grows by appending."""

    records: tuple[Record, ...] = ()

    @property
    def newest(self) -> Record:
        """The newest record; there must be one."""
        return self.records[-1]

    @property
    def generation(self) -> int:
        """Number of the newest generation; -1 before the first."""
        return self.records[-1].generation if self.records else -1

    def and_then(self, record: Record) -> MembershipLog:
        """The log with one more record."""
        return MembershipLog((*self.records, record))

    def client_of(self, site: str) -> int | None:
        """Client id of a site, also of one that is no member any more; None if the run has never had it."""
        if not self.records:
            return None
        return next((client for client, name in self.newest.sites.items() if name == site), None)

    def members_at(self, round_index: int) -> tuple[int, ...]:
        """Client ids, ascending, from which the cohort of a round is drawn."""
        return next(record for record in reversed(self.records) if record.first_round <= round_index).members

    def present(self, round_index: int) -> tuple[int, ...]:
        """Members of a round that have stayed members since, ascending: those that take part in its collectives."""
        left = set(self.members_at(round_index))
        for record in self.records:
            if record.first_round > round_index:
                left &= set(record.members) - set(record.joiners)
        return tuple(sorted(left))

    def has_dropped(self, key: Key) -> bool:
        """Whether an exchange leaves W, server state and residuals as they were before it."""
        return any(record.has_dropped(key) for record in self.records)

    def contributors(self, key: Key, cohort: Sequence[int]) -> tuple[int, ...]:
        """Clients whose deltas an exchange sums, ascending; without any, its mean is zero. None of a dropped one.

        Args:
            key: The exchange.
            cohort: The clients that trained the block in the round.
        """
        left = set[int]() if self.has_dropped(key) else set(cohort)
        for record in self.records[1:]:
            if record.first_round > key[0] and key > record.kept:
                left &= set(record.members) - set(record.joiners)
        return tuple(sorted(left))

    def has_kept(self, key: Key, landed: Record) -> bool:
        """Whether what had landed at a member of a generation counts in this log, too: it has not been redone since.

        Args:
            key: The exchange; with round -1 the block's value before the first one.
            landed: The generation's record, which need not be in this log.
        """
        if landed not in self.records:
            return False
        later = self.records[self.records.index(landed) + 1 :]
        return key[0] < 0 or all(key <= record.kept for record in later)

    def to_json(self) -> list[dict[str, Any]]:
        """As plain values for JSON."""
        return [record.to_json() for record in self.records]

    @classmethod
    def from_json(cls, said: Sequence[Mapping[str, Any]]) -> MembershipLog:
        """The log that :meth:`to_json` wrote.

        Raises:
            ProtocolError: it is no log.
        """
        with reading("the membership log"):
            return cls(tuple(map(Record.from_json, said)))


def as_key(said: Sequence[int]) -> Key:
    """A key that has travelled as JSON.

    Raises:
        ProtocolError: it is no key.
    """
    with reading("the key of an exchange"):
        round_index, block = said
        return int(round_index), int(block)


def _ids(said: Sequence[int]) -> tuple[int, ...]:
    return tuple(map(int, said))


def _restored(said: Mapping[str, Any]) -> Restored:
    as_of = said["as_of"]
    return Restored(
        int(said["block"]), int(said["server"]), None if as_of is None else (as_key(as_of[0]), int(as_of[1]))
    )
