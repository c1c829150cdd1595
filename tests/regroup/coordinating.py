"""A simulated site's part in regroups as the one that drives them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lightning_parablock.errors import TooFewSitesError, WeightsLostError
from lightning_parablock.regroup.candidates import next_generation
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.member import Membership
from lightning_parablock.regroup.report import Decision, Report

if TYPE_CHECKING:
    from tests.regroup.site import Site

ATTEMPT = 20.0  # a coordinator begins anew if an attempt takes longer


@dataclass
class Attempt:
    """A regroup that a coordinator drives."""

    generation: int
    invited: list[Site]
    begun: float
    reports: dict[str, Report] = field(default_factory=dict[str, Report])
    decision: Decision | None = None
    processes: dict[int, Site] = field(default_factory=dict[int, "Site"])
    acknowledged: set[str] = field(default_factory=set[str])


class Coordinates:
    """Base of the simulated site."""

    decide = staticmethod(decide)

    def coordinate(self: Site, listed: list[Site]) -> None:
        """Begin an attempt if the sites that are there are not the members, or one of them waits for one."""
        world = self.world
        changed = {one.number for one in listed} != {one.number for one in self.peers.values()}
        if not changed and not any(one.is_leaving or one.waits_for_regroup(self.membership) for one in listed):
            return
        if self.attempt and self.attempt.invited == listed and world.now - self.attempt.begun < ATTEMPT:
            return
        self.is_short_handed = sum(not one.is_leaving for one in listed) < self.task.min_clients
        if self.is_short_handed:
            self.attempt = None
            return
        generation = next_generation(one.membership.sealed for one in listed)
        self.attempt = Attempt(generation, listed, world.now)
        world.stats["attempts"] += 1
        for one in listed:
            world.send(self, one, "prepare", generation)

    def waits_for_regroup(self: Site, newest: Membership) -> bool:
        """Whether the site has sealed a generation that will not open by itself; "open" takes a while to arrive."""
        mine = self.membership
        return mine.is_sealed and (mine.sealed > newest.generation or self.world.now - self.sealed_at > ATTEMPT)

    def on_refusal(self: Site, source: Site, generation: int) -> None:
        if self.attempt is not None and self.attempt.generation == generation:
            self.attempt = None
            self.world.stats["refused attempts"] += 1

    def on_report(self: Site, source: Site, generation: int, report: Report) -> None:
        attempt = self.attempt
        if attempt is None or attempt.generation != generation:
            return
        attempt.reports[source.name] = report
        if len(attempt.reports) < len(attempt.invited):
            return
        rules = Rules(self.task.topology, self.task.min_clients, self.task.n_blocks, self.task.has_server_state)
        try:
            decision = self.decide(generation, list(attempt.reports.values()), rules)
        except (TooFewSitesError, WeightsLostError):
            self.attempt = None
            return
        self.count(decision)
        attempt.decision = decision
        clients = {decision.log.client_of(one.name): one for one in attempt.invited}
        attempt.processes = {client: one for client, one in clients.items() if client is not None}
        for one in attempt.invited:
            self.world.send(self, one, "decision", generation, decision, attempt.processes)

    def on_ack(self: Site, source: Site, generation: int) -> None:
        attempt = self.attempt
        if attempt is None or attempt.generation != generation or attempt.decision is None:
            return
        attempt.acknowledged.add(source.name)
        members = attempt.decision.record.members
        if attempt.acknowledged >= {attempt.processes[client].name for client in members}:
            self.attempt = None
            for one in attempt.invited:
                self.world.send(self, one, "open", generation)

    def count(self: Site, decision: Decision) -> None:
        """What makes histories worth running."""
        stats, record = self.world.stats, decision.record
        started = max((one.started for one in self.attempt.reports.values()), default=-1) if self.attempt else -1
        stats["decisions"] += 1
        stats["decisions that forward kept commits"] += len(set(decision.landed.values())) > 1
        stats["decisions that redo exchanges"] += started > record.kept[0]
        stats["decisions that admit joiners"] += bool(record.joiners) and len(decision.log.records) > 1
        stats["decisions with leavers"] += any(client not in record.members for client in decision.landed)
        stats["decisions in which n would fall"] += len(decision.log.records) > 1 and started + 1 < record.first_round
        stats["pieces restored from a backup"] += sum(lost.as_of is not None for lost in record.restored)
        stats["pieces that start anew"] += sum(lost.as_of is None for lost in record.restored)
