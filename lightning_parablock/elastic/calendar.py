"""Which exchanges there are and who contributes to them, as the membership log and the schedule say."""

from __future__ import annotations

from dataclasses import replace

from lightning_parablock.federation.schedule import Schedule, Work
from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.log import MembershipLog


class Calendar:
    """A schedule whose cohorts are drawn from the members of each round: a pure function of the log.

    Args:
        schedule: The run's schedule; its block order must not depend on the training ("importance").
    """

    def __init__(self, schedule: Schedule) -> None:
        self._schedule = schedule

    def work_of(self, log: MembershipLog, round_index: int) -> Work:
        """The blocks of a round with their clients."""
        cohorts = replace(self._schedule.cohorts, members_at=log.members_at)
        return replace(self._schedule, cohorts=cohorts).work_of(round_index, {})

    def contributors(self, log: MembershipLog, key: Key) -> tuple[int, ...]:
        """The clients whose deltas an exchange sums in the newest generation, ascending."""
        return log.contributors(key, self.work_of(log, key[0])[key[1]])

    def between(self, log: MembershipLog, after: Key, rounds: int) -> list[Key]:
        """The exchanges newer than ``after`` of the rounds below ``rounds``, oldest first."""
        first = max(after[0], log.records[0].first_round)
        return [(t, b) for t in range(first, rounds) for b in self.work_of(log, t) if (t, b) > after]

    def newest_of(self, log: MembershipLog, block: int, upto: Key) -> Key:
        """The newest exchange of a block up to and with ``upto``; :data:`BEFORE_ALL` if there is none."""
        for t in range(upto[0], log.records[0].first_round - 1, -1):
            if block in self.work_of(log, t) and (t, block) <= upto:
                return t, block
        return BEFORE_ALL
