"""A simulated site's part in regroups: as member, and as the one that gives what others lack."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from lightning_parablock.errors import SealedError
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision, Report, Source, Standing
from tests.regroup import toy
from tests.regroup.exchanging import State, parts
from tests.regroup.toy import Values

if TYPE_CHECKING:
    from tests.regroup.site import Site


@dataclass
class Prepared:
    """With what a member opens a generation."""

    decision: Decision
    coordinator: Site
    processes: dict[int, Site]
    missing: set[tuple[Any, ...]] = field(default_factory=set[tuple[Any, ...]])
    commits: dict[Key, Values] = field(default_factory=dict[Key, Values])
    snapshot: tuple[Values, int] | None = None
    states: dict[int, State] = field(default_factory=dict[int, State])


class Regroups:
    """Base of the simulated site."""

    # --- report -------------------------------------------------------------------------------------------------------

    def on_prepare(self: Site, source: Site, generation: int) -> None:
        try:
            self.membership.seal(generation)
            self.sealed_at = self.world.now
        except SealedError:
            self.world.send(self, source, "refusal", generation)
            return
        self.preparing = None
        self.world.send(self, source, "report", generation, self.report())

    def report(self: Site) -> Report:
        return Report(
            site=self.name,
            client=None,
            opened=self.standing() if self.membership.generation >= 0 else None,
            acknowledged=self.standing_of(self.prepared) if self.membership.acknowledged and self.prepared else None,
            started=self.started,
            is_leaving=self.is_leaving,
            checkpoint_round=self.checkpoint_round,
            noted=("run",) if self.was_member else (),
        )

    def standing(self: Site) -> Standing:
        mine = self.exchanges
        return Standing(
            self.membership.log,
            mine.landed,
            {block: tuple(label for label, _ in versions) for block, versions in mine.served.items()},
            {piece: tuple(sorted(held)) for piece, held in mine.backups.items()},
        )

    def standing_of(self: Site, prepared: Prepared) -> Standing:
        record = prepared.decision.record
        label = (record.kept, record.generation)
        return Standing(
            prepared.decision.log,
            record.kept,
            {block: (label,) for block in prepared.states},
            {piece: tuple(sorted(held)) for piece, held in self.backups_after(prepared.decision.log).items()},
        )

    def backups_after(self: Site, log: MembershipLog) -> dict[tuple[int, int], dict[Any, State]]:
        """Of the backups those that a new generation can use: not of redone exchanges, nor of parts that have moved."""
        before = parts(self.task, log.records[-2]) if len(log.records) > 1 else {}
        after = parts(self.task, log.newest)
        return {
            (block, server): {label: state for label, state in held.items() if label[0] <= log.newest.kept}
            for (block, server), held in self.exchanges.backups.items()
            if server in after and after[server] == before.get(server)
        }

    # --- transfers ----------------------------------------------------------------------------------------------------

    def on_decision(self: Site, source: Site, generation: int, decision: Decision, processes: dict[int, Site]) -> None:
        if generation != self.membership.sealed:
            return
        self.adopt(decision)
        client = decision.log.client_of(self.name)
        if self.membership.generation >= 0 and client in decision.record.joiners:
            self.learn_of_drop()  # before its own look at the list has told it
            return
        self.taken = generation
        self.preparing = preparing = Prepared(decision, source, processes)
        if client in decision.record.members:
            for holder, request in self.lacking(client, preparing):
                preparing.missing.add(request)
                self.world.send(self, processes[holder], "pull", generation, request)
            self.acknowledge_if_complete()
        waiting, self.waiting_pulls = self.waiting_pulls, []
        for asker, number, request in waiting:
            self.on_pull(asker, number, request)

    def adopt(self: Site, decision: Decision) -> None:
        waiting = self.membership.adopt(decision)
        if waiting is not None:
            assert self.prepared is not None and self.prepared.decision is waiting
            self.world.stats["adopted generations"] += 1
            self.install(self.prepared)

    def lacking(self: Site, client: int, preparing: Prepared) -> list[tuple[int, tuple[Any, ...]]]:
        """What to ask of whom; what is here already is noted at once."""
        decision, record, task = preparing.decision, preparing.decision.record, self.task
        asks: list[tuple[int, tuple[Any, ...]]] = []
        if client in record.joiners:
            if decision.donor is None:
                preparing.snapshot = (toy.initial(task.n_blocks), -1)
            else:
                asks.append((decision.donor, ("snapshot",)))
        elif self.landed < record.kept and decision.donor is not None:
            asks.append((decision.donor, ("commits", self.landed)))
        own = parts(task, record).get(client)
        if own is None or not task.has_server_state:
            return asks
        for block in range(task.n_blocks):
            preparing.states[block] = (np.zeros(own.stop - own.start), np.zeros(own.stop - own.start))
        before = parts(task, decision.log.records[-2]) if len(decision.log.records) > 1 else {}
        for one in decision.sources:
            theirs = before[one.server]
            if one.holder is not None and theirs.start < own.stop and own.start < theirs.stop:
                asks.append((one.holder, ("state", one)))
        return asks

    def on_pull(self: Site, source: Site, generation: int, request: tuple[Any, ...]) -> None:
        """Give what is asked for, as it is once this site has taken the decision itself."""
        if generation > self.taken:
            self.waiting_pulls.append((source, generation, request))
        elif generation == self.taken and self.preparing is not None:
            self.world.send(self, source, "given", generation, request, self.answer(request, self.preparing.decision))

    def answer(self: Site, request: tuple[Any, ...], decision: Decision) -> Any:
        mine = self.exchanges
        if request[0] == "state":
            source: Source = request[1]
            assert source.label is not None
            if source.server == self.membership.client:
                return dict(mine.served[source.block])[source.label]
            return mine.backups[source.block, source.server][source.label]
        if request[0] == "commits":
            return self.commits_between(request[1], decision.record.kept)
        if self.training is None:  # the newest checkpoint from which a run begins
            first = decision.record.first_round
            return toy.initial(self.task.n_blocks, first), first - 1, {}
        w, merged = self.training.w.copy(), self.training.merged
        return w, merged, self.commits_between((merged, self.task.n_blocks), decision.record.kept)

    def commits_between(self: Site, after: Key, kept: Key) -> dict[Key, Values]:
        commits: dict[Key, Values] = {}
        key = self.exchanges.after(after)
        while key is not None and key <= kept:
            commits[key] = self.exchanges.whole[key]
            key = self.exchanges.after(key)
        return commits

    def on_given(self: Site, source: Site, generation: int, request: tuple[Any, ...], answer: Any) -> None:
        preparing = self.preparing
        if generation != self.membership.sealed or preparing is None or request not in preparing.missing:
            return
        preparing.missing.remove(request)
        if request[0] == "state":
            self.place(preparing, request[1], answer)
        elif request[0] == "commits":
            preparing.commits = answer
        else:
            w, merged, preparing.commits = answer
            preparing.snapshot = (w, merged)
        self.acknowledge_if_complete()

    def place(self: Site, preparing: Prepared, source: Source, piece: State) -> None:
        """Put what overlaps of a server's former part into the part that this site serves from now on."""
        log = preparing.decision.log
        client = log.client_of(self.name)
        assert client is not None
        theirs, own = parts(self.task, log.records[-2])[source.server], parts(self.task, log.newest)[client]
        for k in range(max(theirs.start, own.start), min(theirs.stop, own.stop)):
            for to, given in zip(preparing.states[source.block], piece, strict=True):
                if len(given):  # a momentum or residual that this server has
                    to[k - own.start] = given[k - theirs.start]

    def acknowledge_if_complete(self: Site) -> None:
        preparing = self.preparing
        if preparing is not None and not preparing.missing:
            self.membership.acknowledge(preparing.decision)
            self.prepared = preparing
            self.world.send(self, preparing.coordinator, "ack", self.membership.sealed)

    # --- opening ------------------------------------------------------------------------------------------------------

    def on_open(self: Site, source: Site, generation: int) -> None:
        if generation != self.membership.sealed:
            return
        if self.is_leaving and self.preparing is not None:
            self.has_left = self.said_goodbye = True
            self.is_alive = False
            self.world.look_for_end()
            return
        self.membership.open(generation)
        assert self.prepared is not None
        self.install(self.prepared)

    def install(self: Site, prepared: Prepared) -> None:
        """Put everything with which a generation opens in place, and go on."""
        decision, record, mine = prepared.decision, prepared.decision.record, self.exchanges
        self.prepared = None
        backups = self.backups_after(decision.log)
        client = decision.log.client_of(self.name)
        assert client is not None
        self.client, self.peers = client, {c: prepared.processes[c] for c in record.members}
        mine.log, mine.layout = decision.log, parts(self.task, record)
        mine.known, self.drained = dict.fromkeys(record.members, record.kept), set()
        if prepared.snapshot is not None:
            w, merged = prepared.snapshot
            mine.w = w.copy()
            mine.landed = min((merged, self.task.n_blocks - 1), record.kept)
            self.begin_training(w, merged, record.first_round)
        mine.pieces.clear()
        mine.inbox.clear()
        mine.whole = {key: commit for key, commit in mine.whole.items() if key <= record.kept} | prepared.commits
        mine.land()
        self.redone_up_to = mine.newest_served
        assert mine.landed == record.kept, "a kept exchange is not here"
        mine.newest_served, mine.serving_w = record.kept, mine.w.copy()
        label = (record.kept, record.generation)
        mine.served = {block: [(label, state)] for block, state in prepared.states.items()}
        mine.backups.clear()
        mine.backups.update(backups)
        self.go_on(label)
        self.world.note_opening(self, record)

    def go_on(self: Site, label: tuple[Key, int]) -> None:
        mine = self.exchanges
        self.beat()
        for key in sorted(mine.outgoing):
            mine.upload(key)
        if self.accepts(self.membership.generation):
            for block, versions in mine.served.items():
                mine.back_up(block, label, versions[-1][1])
        early, self.early = self.early, []
        for kind, source, generation, body in early:
            if generation >= self.membership.generation:
                self.receive(kind, source, generation, body)
        mine.serve()
        self.kick()
        self.look_for_end()
