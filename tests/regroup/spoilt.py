"""Sites that break one rule each; with any of them some histories must fail.

The numbers are those of docs/method.md, "The rules".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.log import MembershipLog, Restored
from lightning_parablock.regroup.report import Decision, Label, Report
from tests.regroup.exchanging import State, parts
from tests.regroup.regrouping import Prepared
from tests.regroup.site import Site
from tests.regroup.spoilt_exchanges import EXCHANGES, OneBackup
from tests.regroup.toy import Values
from tests.regroup.training import Training

SPOILT: dict[str, type[Site]] = {}


def spoils(rule: int) -> Any:
    """Register a site that breaks a rule."""

    def register(site: type[Site]) -> type[Site]:
        SPOILT[f"rule {rule}: {site.__doc__}"] = site
        return site

    return register


for _rule, _exchanges in EXCHANGES.items():
    SPOILT[_rule] = type(_exchanges.__name__, (Site,), {"exchanges_class": _exchanges})


# --- rule 2: report ---------------------------------------------------------------------------------------------------


@spoils(2)
class TakesMessagesAfterReport(Site):
    """exchange messages are accepted after the report"""

    def accepts(self, generation: int) -> bool:
        return generation == self.membership.generation


@spoils(2)
class StartsRoundsAfterReport(Site):
    """rounds start after the report"""

    def may_start(self) -> bool:
        return True


# --- rule 3: decision -------------------------------------------------------------------------------------------------


@spoils(3)
class AdoptsNothing(Site):
    """a generation that others have opened is not adopted"""

    def adopt(self, decision: Decision) -> None:
        pass


@spoils(3)
class KeepsLess(Site):
    """an exchange is kept only once it has landed on all survivors"""

    @staticmethod
    def decide(generation: int, reports: Sequence[Report], rules: Rules) -> Decision:
        decision = decide(generation, reports, rules)
        kept = min(decision.landed.values(), default=decision.record.kept)
        return with_record(decision, kept=kept)


# --- rule 4: redo -----------------------------------------------------------------------------------------------------


@spoils(4)
class MixesGenerations(Site):
    """chunks of older generations are used"""

    def install(self, prepared: Prepared) -> None:
        inbox = {key: dict(parts) for key, parts in self.exchanges.inbox.items()}
        pieces = {key: dict(parts) for key, parts in self.exchanges.pieces.items()}
        super().install(prepared)
        for now, before in ((self.exchanges.pieces, pieces), (self.exchanges.inbox, inbox)):
            for key, received in before.items():
                now[key] = received | now[key]


@spoils(4)
class StateFromAfter(Site):
    """a redone exchange starts from the server state after it"""

    def answer(self, request: tuple[Any, ...], decision: Decision) -> Any:
        if request[0] == "state" and request[1].server == self.membership.client:
            return self.exchanges.served[request[1].block][-1][1]
        return super().answer(request, decision)


@spoils(4)
class ServersWFromAfter(Site):
    """a redone exchange starts from the server's W after it"""

    def install(self, prepared: Prepared) -> None:
        mine = self.exchanges
        served_w, newest, part = mine.serving_w.copy(), mine.newest_served, mine.layout.get(self.client)
        super().install(prepared)
        if part is not None and newest > prepared.decision.record.kept:
            mine.serving_w[:, part] = served_w[:, part]


# --- rule 5: n --------------------------------------------------------------------------------------------------------


def with_record(decision: Decision, **changes: Any) -> Decision:
    """The decision with another record."""
    record = replace(decision.record, **changes)
    return replace(decision, record=record, log=MembershipLog((*decision.log.records[:-1], record)))


@spoils(5)
class NFalls(Site):
    """n may be less than that of the last record"""

    @staticmethod
    def decide(generation: int, reports: Sequence[Report], rules: Rules) -> Decision:
        decision = decide(generation, reports, rules)
        if len(decision.log.records) == 1:
            return decision
        started = [one.started for one in reports if decision.log.client_of(one.site) in decision.landed]
        return with_record(decision, first_round=max(*started, decision.record.kept[0]) + 1)


@spoils(5)
class NOfLanded(Site):
    """n does not count rounds that have started and not landed"""

    @staticmethod
    def decide(generation: int, reports: Sequence[Report], rules: Rules) -> Decision:
        decision = decide(generation, reports, rules)
        if len(decision.log.records) == 1:
            return decision
        return with_record(decision, first_round=max(decision.record.kept[0] + 1, decision.log.records[-2].first_round))


# --- rule 7: opening --------------------------------------------------------------------------------------------------


@spoils(7)
class OpensAtOnce(Site):
    """a member opens when it has acknowledged"""

    def acknowledge_if_complete(self) -> None:
        super().acknowledge_if_complete()
        if self.preparing is not None and self.prepared is self.preparing:
            self.membership.open(self.membership.sealed)
            self.install(self.prepared)

    def on_open(self, source: Site, generation: int) -> None:
        if self.is_leaving:
            super().on_open(source, generation)


@spoils(7)
class DropsEarly(Site):
    """messages of a generation that is not open yet are dropped"""

    def keep_early(self, kind: str, source: Site, generation: int, body: tuple[Any, ...]) -> None:
        pass


@spoils(7)
class ReleasesAtAcknowledgement(Site):
    """what the old generation needs is released when the new one is acknowledged"""

    def acknowledge_if_complete(self) -> None:
        super().acknowledge_if_complete()
        if self.preparing is not None and self.prepared is self.preparing:
            kept = self.preparing.decision.record.kept
            self.exchanges.served = {
                block: versions[-1:] if versions[-1][0][0] <= kept else versions[:1]
                for block, versions in self.exchanges.served.items()
            }
            self.exchanges.outgoing = {k: v for k, v in self.exchanges.outgoing.items() if k > kept}
            self.exchanges.backups.clear()
            self.exchanges.whole = {k: v for k, v in self.exchanges.whole.items() if k[0] > self.merged}


# --- rule 8: joiner ---------------------------------------------------------------------------------------------------


class StartsBehind(Training):
    def due_before(self, first: int) -> int:
        return self.merged


@spoils(8)
class JoinerMergesLater(Site):
    """a joiner starts without merging what falls due before its first round"""

    training_class = StartsBehind


# --- rule 9: server state ---------------------------------------------------------------------------------------------


@spoils(9)
class KeepsVoidBackups(Site):
    """backups of redone exchanges are not thrown away"""

    def backups_after(self, log: MembershipLog) -> dict[tuple[int, int], dict[Label, State]]:
        before = parts(self.task, log.records[-2]) if len(log.records) > 1 else {}
        after = parts(self.task, log.newest)
        return {
            (block, server): dict(held)
            for (block, server), held in self.exchanges.backups.items()
            if server in after and after[server] == before.get(server)
        }


def decide_with_any_backup(generation: int, reports: Sequence[Report], rules: Rules) -> Decision:
    decision = decide(generation, reports, rules)
    held: dict[tuple[int, int], tuple[Label, int]] = {}
    for report in reports:
        client = decision.log.client_of(report.site)
        standings = [one for one in (report.opened, report.acknowledged) if one is not None]
        for standing in standings:
            if client in decision.landed and standing.log.records == decision.log.records[:-1]:
                for piece, labels in standing.backups.items():
                    for label in labels:
                        held[piece] = max((label, client), held.get(piece, (label, client)))
    sources = tuple(
        replace(one, label=held[one.block, one.server][0], holder=held[one.block, one.server][1])
        if one.server not in decision.landed and (one.block, one.server) in held
        else one
        for one in decision.sources
    )
    restored = tuple(Restored(one.block, one.server, one.label) for one in sources if one.server not in decision.landed)
    return replace(with_record(decision, restored=restored), sources=sources)


SPOILT[f"rule 9: {OneBackup.__doc__}"].decide = staticmethod(decide_with_any_backup)


# --- rule 10: leaving and ending --------------------------------------------------------------------------------------


@spoils(10)
class IgnoresLeavers(Site):
    """what has landed on a leaver alone is not kept"""

    @staticmethod
    def decide(generation: int, reports: Sequence[Report], rules: Rules) -> Decision:
        decision = decide(generation, reports, rules)
        landed = {client: key for client, key in decision.landed.items() if client in decision.record.members}
        if not landed or len(decision.log.records) == 1:
            return decision
        kept = max(landed.values())
        donor = min(client for client, key in landed.items() if key == kept)
        return replace(with_record(decision, kept=kept), donor=donor)


@spoils(10)
class LeavesWhenDrained(Site):
    """a member that has drained leaves at once"""

    def others_have_drained(self) -> bool:
        return True


@spoils(10)
class ZombieGoesOn(Site):
    """a site that was declared lost and wakes up keeps what it has"""

    def learn_of_drop(self) -> None:
        pass


@spoils(10)
class ZombieKeepsState(Site):
    """a site that was declared lost comes back with its residuals"""

    def learn_of_drop(self) -> None:
        kept = None if self.training is None else self.training.residual
        super().learn_of_drop()
        if kept is not None:
            self.world.leftovers[self.name] = kept

    def begin_training(self, w: Values, merged: int, first: int) -> None:
        super().begin_training(w, merged, first)
        left = self.world.leftovers.pop(self.name, None)
        if left is not None and self.training is not None:
            self.training.residual = np.array(left)
