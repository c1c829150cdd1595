"""What the opening of a generation has changed, in the names of the sites."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_parablock.regroup.log import MembershipLog, Record

LOST, LEFT = "lost", "left"


@dataclass(frozen=True)
class Change:
    """One opening, compared with the generation before it.

    Attributes:
        record: The generation that has opened.
        before: The one before it; None for the first one of a run.
    """

    record: Record
    before: Record | None

    @classmethod
    def newest(cls, log: MembershipLog) -> Change:
        """The newest opening of a log, which must have one."""
        return cls.all_of(log)[-1]

    @classmethod
    def all_of(cls, log: MembershipLog) -> list[Change]:
        """Every opening of a log, oldest first."""
        return [cls(record, before) for record, before in zip(log.records, (None, *log.records), strict=False)]

    @property
    def members(self) -> tuple[str, ...]:
        """Names of the members' sites, sorted."""
        return self._names(self.record.members)

    @property
    def joined(self) -> tuple[str, ...]:
        """Names of the sites that did not continue from the generation before without a break."""
        return self._names(self.record.joiners)

    @property
    def gone(self) -> dict[str, str]:
        """Why each site that was a member is none any more, by its name: ``left``, ``lost``, or ``lost: why``."""
        return {self.record.sites[client]: why for client, why in self.record.gone.items()}

    def in_words(self) -> str:
        """One line for people: what has changed, who continues, and from which round on."""
        n, names, n_round = len(self.members), ", ".join(self.members), self.record.first_round
        if self.before is None:
            begin = f"they begin with round {n_round}"
            return f"{_sites(self.members)} found the run, generation {self.record.generation}: {begin}"
        what = [_gone(name, why) for name, why in self.gone.items()]
        what += [f"site {name} {'came back' if self._is_known(name) else 'joined'}" for name in self.joined]
        all_before = f" of {len(self.before.members)}" if self.gone and not self.joined else ""
        return (
            f"{', '.join(what) or 'the members have connected again'}: {n}{all_before} "
            f"{'site' if all_before == '' and n == 1 else 'sites'} ({names}) "
            f"{'continues' if n == 1 else 'continue'} from round {n_round} on"
        )

    def _is_known(self, name: str) -> bool:
        return self.before is not None and name in self.before.sites.values()

    def _names(self, clients: Sequence[int]) -> tuple[str, ...]:
        return tuple(sorted(self.record.sites[client] for client in clients))


def _gone(name: str, why: str) -> str:
    kind, _, more = why.partition(": ")
    said = f"site {name} left" if kind == LEFT else f"site {name} was lost"
    return f"{said} ({more})" if more else said


def _sites(names: Sequence[str]) -> str:
    return f"{'site' if len(names) == 1 else 'sites'} {', '.join(names)}"
