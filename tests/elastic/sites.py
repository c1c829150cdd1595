"""Sites with the real engine over simulated links, and the regroups between them, by the package's own rules."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.blocks.partition import Block
from lightning_parablock.elastic.shard import Backup, VersionedShard
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.transport import ElasticTransport
from lightning_parablock.errors import SealedError, TooFewSitesError, WeightsLostError
from lightning_parablock.federation.cohorts import Cohorts
from lightning_parablock.federation.joining import start_at
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.candidates import next_generation
from lightning_parablock.regroup.decide import Rules, decide
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.member import Membership
from lightning_parablock.regroup.report import Decision, Report
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.settings import Settings
from tests.elastic.carrier import Carrier, Key
from tests.elastic.secure_carrier import SecureCarrier
from tests.elastic.secured import Secured, shift_of
from tests.elastic.world import Actor, Baton, World

Step = Callable[[Tensor, list[Tensor], int, int, int], Tensor]


@dataclass(frozen=True)
class Setup:
    """What all sites of a history share."""

    settings: Settings
    schedule: Schedule
    initial: list[Tensor]
    rounds: int
    step: Step
    samples: Callable[[int, int], int]
    min_clients: int
    dtype: torch.dtype = torch.float32
    checkpoint: tuple[int, frozenset[str]] = (-1, frozenset())
    secure: Secured | None = None

    @property
    def sizes(self) -> list[int]:
        return [value.numel() for value in self.initial]

    @property
    def keeps_state(self) -> bool:
        optimizer = type(self.settings.server_optimizer).__name__
        return optimizer != "ServerSGD" or self.settings.compression.is_lossy


class Model(nn.Module):
    """One parameter a block."""

    def __init__(self, values: Sequence[Tensor], dtype: torch.dtype) -> None:
        super().__init__()
        self.blocks = nn.ParameterList([nn.Parameter(value.to(dtype, copy=True)) for value in values])


class Site:
    """One process of a site.

    Args:
        run: Everything around it.
        name: Its name.
        initial: What its model holds before it takes part.
    """

    def __init__(self, run: Run, name: str, initial: Sequence[Tensor]) -> None:
        self.run, self.name = run, name
        self.membership = Membership(name)
        self.model = Model(initial, run.setup.dtype)
        self.flat = FlatBlocks(self.model, [Block(f"b{i}", (f"blocks.{i}",), v.numel()) for i, v in enumerate(initial)])
        is_exact, is_lossy = self.flat.is_exact, run.setup.settings.compression.is_lossy
        store = CommittedStore(
            [self.flat.pack(block) for block in range(len(initial))],
            self.flat.as_held if is_lossy and not is_exact else None,
        )
        self.transport = ElasticTransport(
            self.flat.blocks,
            run.setup.settings,
            run.setup.schedule,
            store,
            rejoin_timeout_s=1e6,
            as_held=None if is_exact else lambda block, first, values: self.flat.as_held(block, values, first),
            changed=Baton(run.world),
        )
        self.transport.on_landed = self._note_landed
        self.transport.send_backup = lambda client, backup: run.send_backup(self, client, backup)
        self.carrier: Carrier | SecureCarrier | None = None
        self.salt = b"" if run.setup.secure is None else run.setup.secure.record_of(name).fresh_salt()
        self.actor: Actor | None = None
        self.joined: Record | None = None
        self.is_late = self.has_gone_home = False
        self.is_alive, self.is_ready, self.is_leaving, self.has_drained = True, False, False, False
        self.frozen_until = 0.0
        self.pace = run.world.rng.choice([0.5, 1.0, 1.0, 3.0])
        self.landed: dict[Key, Tensor] = {}

    @property
    def client(self) -> int:
        return self.transport.client

    @property
    def is_frozen(self) -> bool:
        return self.run.world.now < self.frozen_until

    @property
    def is_member(self) -> bool:
        return self.is_alive and self.membership.generation >= 0

    def _note_landed(self, key: Key) -> None:
        self.landed[key] = self.transport.store.at(key).clone()
        self.run.tell_landed(self, key)

    def report(self) -> Report:
        standing, started = self.transport.seal()
        begin, holders = self.run.setup.checkpoint
        return Report(
            site=self.name,
            client=None,
            opened=standing if self.membership.log.records else None,
            acknowledged=self.transport.acknowledged_standing() if self.membership.acknowledged else None,
            started=started,
            is_leaving=self.is_leaving,
            samples=1,
            noted=("run",) if self.is_late else (),
            checkpoint_round=begin if self.name in holders and not self.is_late else -1,
        )

    def start(self) -> None:
        """Begin to train, once; a survivor continues by itself."""
        if self.actor is None:
            self.actor = Actor(self.run.world, self._train)
            self.actor.frozen_until = self.frozen_until
            self.actor.start()

    def _train(self) -> None:
        setup, transport, world = self.run.setup, self.transport, self.run.world
        settings, record = setup.settings, self.joined
        assert record is not None and self.actor is not None
        cohorts = Cohorts(
            0, setup.schedule.cohorts.size, setup.schedule.cohorts.sampling, settings.seed,
            members_at=lambda t: transport.log.members_at(t),
        )  # fmt: skip
        schedule = Schedule(setup.schedule.order, len(setup.initial), settings.seed, cohorts)
        engine = RoundEngine(self.flat, settings, [self.client], transport, schedule, 1)
        n = record.first_round
        start_at(engine, n, transport.values_at_start(n), first_round=transport.log.records[0].first_round)
        while engine.round < setup.rounds:
            for client in engine.begin_round():
                engine.begin_turn(client)
                for k in range(settings.local_steps):
                    step = engine.round * settings.local_steps + k
                    if client is not None:
                        self._step(engine.block, step)
                    engine.after_step(setup.samples(self.client, step))
                    self.actor.pause(self.pace * (0.5 + world.rng.random()))
                engine.end_turn()
            engine.end_round()
        engine.finish()
        self.has_drained = True

    @torch.no_grad()
    def _step(self, block: int, step: int) -> None:
        values = [self.flat.pack(other) for other in range(len(self.model.blocks))]
        who: Any = self.client + shift_of(self.salt) if self.salt else self.client
        self.flat.unpack(block, self.run.setup.step(values[block], values, block, who, step))


@dataclass
class Attempt:
    """A regroup under way: what its coordinator has."""

    generation: int
    sites: list[Site]
    coordinator: Site
    reports: dict[str, Report] = field(default_factory=dict[str, Report])
    acknowledged: set[str] = field(default_factory=set[str])
    decision: Decision | None = None


class Run:
    """All sites of a history, and what they send each other."""

    def __init__(self, world: World, setup: Setup, names: Sequence[str]) -> None:
        self.world, self.setup = world, setup
        begin, holders = setup.checkpoint
        zeros = [torch.zeros_like(value) for value in setup.initial]
        self.sites = [Site(self, name, setup.initial if begin < 0 or name in holders else zeros) for name in names]
        self.carriers: dict[tuple[int, int], tuple[Site, Any]] = {}
        self.salts: dict[tuple[int, int], bytes] = {}
        self.outcome = ""
        self.coming = 0
        self.seen = Counter[str]()
        for site in self.sites:
            site.is_ready = True
        self.attempt: Attempt | None = None
        self.poke(0.0)

    # --- who is here --------------------------------------------------------------------------------------------------

    @property
    def newest(self) -> int:
        return max((s.membership.generation for s in self.sites if s.is_alive), default=-1)

    @property
    def log(self) -> MembershipLog:
        here = [s for s in self.sites if s.is_alive or s.has_gone_home]
        return max((s.membership.log for s in here), key=lambda log: log.generation)

    @property
    def is_over(self) -> bool:
        if not self.coming and not any(s.is_alive for s in self.sites):
            if any(s.has_gone_home for s in self.sites):
                return True
            self.outcome = "all lost"
        if self.outcome:
            return True
        members = [s for s in self.sites if s.is_member]
        if any(s.is_frozen for s in members) or self.newest < 0:
            return False
        return all(s.has_drained for s in members) or not members

    def new_site(self, name: str) -> None:
        """A process that starts in mid-run; its model holds anything but W."""
        draw = torch.Generator().manual_seed(len(self.sites))
        garbage = [torch.randn(size, generator=draw) for size in self.setup.sizes]
        site = Site(self, name, garbage)
        site.is_late = True
        self.sites.append(site)
        if self.world.rng.random() < 0.5:
            self.world.after(self.world.lag(), lambda: self._take_ahead(site))
        self.world.after(self.world.lag(3.0), lambda: self._become_ready(site))

    def _take_ahead(self, site: Site) -> None:
        donors = [s for s in self.sites if s.is_member and not s.is_frozen]
        if donors and site.is_alive and not site.is_member:
            store = donors[0].transport
            record, keys = store.newest()
            for key in keys:
                site.transport.take_ahead(key, store.commit_of(key).clone(), record)

    def _become_ready(self, site: Site) -> None:
        self.coming -= 1
        if site.is_alive:
            site.is_ready = True
            self.poke(0.0)

    def kill(self, site: Site, restarts: bool) -> None:
        if not site.is_alive:
            return
        site.is_alive = False
        if site.actor is not None:
            site.actor.kill()
        site.transport.seal()
        for other, carrier in list(self.carriers.values()):
            is_peer = self.carriers.get((carrier.record.generation, site.client), (None,))[0] is site
            if other.is_alive and is_peer and self.world.rng.random() < 0.5:
                self.world.after(self.world.lag(), carrier.fail)
        if restarts:
            self.coming += 1
            self.world.after(self.world.lag(5.0), lambda: self.new_site(site.name))
        self.poke(self.world.lag())

    def freeze(self, site: Site, for_s: float) -> None:
        if not site.is_alive or site.is_frozen:
            return
        site.frozen_until = self.world.now + for_s
        if site.actor is not None:
            site.actor.frozen_until = site.frozen_until
        self.poke(self.world.lag(8.0))
        self.world.after(for_s + 0.001, lambda: self._wake(site))

    def _wake(self, site: Site) -> None:
        """A zombie that has been dropped discards everything and comes back as a joiner."""
        if site.is_alive and site.membership.was_dropped(self.newest):
            self.seen["zombies that wake up"] += 1
            self.kill(site, restarts=True)
        else:
            self.poke(0.0)

    def leave(self, site: Site) -> None:
        staying = [s for s in self.sites if s.is_member and not s.is_leaving and s is not site]
        if site.is_member and not site.is_frozen and not site.has_drained and len(staying) >= self.setup.min_clients:
            site.is_leaving = True
            if site.actor is not None:
                site.actor.kill()
            self.poke(0.5)

    # --- messages -----------------------------------------------------------------------------------------------------

    def send(self, sender: Site, receiver: Site, event: Callable[[], None], scale: float = 1.0) -> None:
        """Let something happen at another site, if it is still alive then; of what a dead site sent, half arrives."""

        def deliver() -> None:
            if receiver.is_frozen:
                self.world.after(receiver.frozen_until - self.world.now + 0.002, deliver)
            elif receiver.is_alive and (sender.is_alive or self.world.rng.random() < 0.5):
                event()

        self.world.after(0.0 if sender is receiver else self.world.lag(scale), deliver)

    def post(self, sender: Site, generation: int, member: int, event: Callable[[Any], None]) -> None:
        """Send within a generation."""
        receiver, carrier = self.carriers[generation, member]
        self.send(sender, receiver, lambda: event(carrier))

    def of(self, client: int) -> Site | None:
        """The member of the newest log with a client id."""
        return next((s for s in self.sites if s.is_member and s.client == client), None)

    def tell_landed(self, site: Site, key: Key) -> None:
        generation = site.transport.log.generation
        for other in self.sites:
            if other is not site and other.is_alive:
                self.send(
                    site, other, lambda o=other: o.transport.note_landed(site.client, key, generation), 2.0
                )  # fmt: skip

    def send_backup(self, site: Site, client: int, backup: Backup) -> None:
        keeper = self.of(client)
        if keeper is None or keeper is site:
            return
        pieces = backup.read() if self.world.rng.random() < 0.5 else None

        def arrive(pieces: list[StatePiece] | None = pieces) -> None:
            pieces = pieces if pieces is not None else backup.read()
            if pieces is not None:
                keeper.transport.take_backup(backup.block, backup.server, backup.label, pieces)

        self.send(site, keeper, arrive, self.world.rng.choice([0.3, 3.0]))

    # --- regroups -----------------------------------------------------------------------------------------------------

    def poke(self, delay: float) -> None:
        """Let the arbiter look."""
        self.world.after(delay, self._look)

    def _look(self) -> None:
        here = [s for s in self.sites if s.is_alive and not s.is_frozen and (s.is_member or s.is_ready)]
        here = [s for s in here if not (s.is_member and s.membership.was_dropped(self.newest))]
        if self.outcome or not here:
            return
        if self.newest >= 0:
            members = {s.client for s in here if s.is_member}
            is_same = members == set(self.log.newest.members) and all(s.is_member for s in here)
            if is_same and not any(s.is_leaving or s.membership.is_sealed for s in here):
                return
        generation = next_generation(s.membership.sealed for s in self.sites if s.is_alive)
        coordinator = min(here, key=lambda s: (-s.membership.generation, s.client, s.name))
        attempt = self.attempt = Attempt(generation, here, coordinator)
        for site in here:
            self.send(coordinator, site, lambda site=site: self._prepare(attempt, site))
        # A site that freezes or is cut off meanwhile is noticed after a while, and another attempt is made without it.
        self.world.after(60.0, lambda: self._look() if self.attempt is attempt and self._is_stuck(attempt) else None)

    def _is_stuck(self, attempt: Attempt) -> bool:
        return any(s.is_alive and s.membership.is_sealed for s in attempt.sites)

    def _prepare(self, attempt: Attempt, site: Site) -> None:
        try:
            site.membership.seal(attempt.generation)
        except SealedError:
            return
        report = Report.from_json(site.report().to_json())
        self.send(site, attempt.coordinator, lambda: self._reported(attempt, report))

    def _reported(self, attempt: Attempt, report: Report) -> None:
        attempt.reports[report.site] = report
        if len(attempt.reports) < len(attempt.sites):
            return
        settings = self.setup.settings
        rules = Rules(
            settings.topology,
            self.setup.min_clients,
            len(self.setup.initial),
            self.setup.keeps_state,
            drops=self.setup.secure is not None,
        )
        try:
            decision = decide(attempt.generation, list(attempt.reports.values()), rules)
        except TooFewSitesError:
            self.outcome = self.outcome or ("" if self.coming else "too few")
            if self.coming:
                self.poke(20.0)
            return
        except WeightsLostError:
            self.outcome = "weights lost"
            return
        begins_anew = not decision.landed and any(s.membership.generation >= 0 for s in self.sites)
        if begins_anew and self.setup.checkpoint[0] >= 0:
            self.outcome = "the checkpoint was lost with its founder"
            return
        attempt.decision = decision = Decision.from_json(decision.to_json())
        for site in attempt.sites:
            self.send(attempt.coordinator, site, lambda site=site: self._decided(attempt, site, decision))

    def _decided(self, attempt: Attempt, site: Site, decision: Decision) -> None:
        try:
            waiting = site.membership.adopt(decision)
        except SealedError:
            return
        if waiting is not None:
            self.seen["openings that others had heard of"] += 1
            self._note_joined(site, waiting.record)
            site.transport.open(None)
        client = decision.log.client_of(site.name)
        if client in decision.record.joiners and site.actor is not None:
            self.seen["zombies that a decision drops"] += 1
            self.kill(site, restarts=True)  # a zombie that had not heard of the generation that dropped it
            return
        if client not in decision.record.members:
            self.send(site, attempt.coordinator, lambda: self._acknowledged(attempt, site))
            return
        site.transport.client = client
        commits, state, scales = dict[Key, Tensor](), list[StatePiece](), dict[Key, Tensor]()
        lacking, needed = site.transport.lacking(decision), site.transport.needed_state(decision)
        wanted = site.transport.scales_wanted(decision)
        missing = len(lacking) + len(needed) + len(wanted)
        self.seen["kept commits forwarded to survivors"] += len(lacking) if client not in decision.record.joiners else 0
        self.seen["pieces of server state that move"] += len(needed)

        def arrived() -> None:
            nonlocal missing
            missing -= 1
            if missing == 0 and site.membership.sealed == attempt.generation:
                self._stage(attempt, site, decision, commits, state, scales)

        def ask(holder: int | None, give: Callable[[Site], Callable[[], object]]) -> None:
            other = next(
                (s for s in attempt.sites if s.is_alive and s.name == decision.log.newest.sites.get(holder or 0)), None
            )
            if other is not None:
                self.send(site, other, lambda: self._reply(attempt, other, site, give, arrived))

        missing += 1
        for key in lacking:
            ask(decision.donor, lambda other, key=key: self._give_commit(other, key, commits))
        for key in wanted:
            ask(decision.donor, lambda other, key=key: self._give_scale(other, key, scales))
        for source in needed:
            ask(source.holder, lambda other, source=source: self._give_state(other, source, state))
        arrived()

    def _reply(
        self,
        attempt: Attempt,
        sender: Site,
        receiver: Site,
        give: Callable[[Site], Callable[[], object]],
        then: Callable[[], None],
    ) -> None:
        if sender.membership.sealed != attempt.generation:  # it may have released what was asked for
            return
        take = give(sender)

        def arrive() -> None:
            take()
            then()

        self.send(sender, receiver, arrive)

    def _give_commit(self, other: Site, key: Key, into: dict[Key, Tensor]) -> Callable[[], object]:
        value = other.transport.commit_of(key).clone()
        return lambda: into.update({key: value})

    def _give_scale(self, other: Site, key: Key, into: dict[Key, Tensor]) -> Callable[[], object]:
        value = other.transport.scale_of(key).clone()
        return lambda: into.update({key: value})

    def _give_state(self, other: Site, source: object, into: list[StatePiece]) -> Callable[[], object]:
        pieces = other.transport.state_of(source)  # type: ignore[arg-type]
        return lambda: into.extend(pieces)

    def _stage(
        self,
        attempt: Attempt,
        site: Site,
        decision: Decision,
        commits: dict[Key, Tensor],
        state: list[StatePiece],
        scales: dict[Key, Tensor],
    ) -> None:
        shard = site.transport.stage(decision, commits, state, scales)
        generation = decision.record.generation
        site.carrier = self._connected(site, decision.record, shard)
        self.carriers[generation, site.client] = (site, site.carrier)
        site.membership.acknowledge(decision)
        self.send(site, attempt.coordinator, lambda: self._acknowledged(attempt, site))

    def _connected(self, site: Site, record: Record, shard: VersionedShard) -> Carrier | SecureCarrier:
        settings, secure = self.setup.settings, self.setup.secure

        def post(member: int, event: Callable[[Any], None]) -> None:
            self.post(site, record.generation, member, event)

        if secure is None:
            return Carrier(self.world, record, site.client, shard, self.setup.sizes, settings.topology, post)
        names = [record.sites[client] for client in record.order]
        hosts = Hosts(names, [(client,) for client in record.order], record.order.index(site.client))
        masks = secure.masks(site.name, site.salt, record)
        aggregator = SecureAggregator(secure.width, self.setup.sizes, hosts, masks, shard, site.transport.scales)

        def opened(key: Key) -> None:
            members = [self.carriers[record.generation, client][0] for client in record.members]
            secure.ear.open(key, record.generation, frozenset((one.name, one.salt, key[0]) for one in members))

        return SecureCarrier(
            self.world, record, site.client, shard, self.setup.sizes, settings.topology, post, aggregator, opened
        )

    def _acknowledged(self, attempt: Attempt, site: Site) -> None:
        attempt.acknowledged.add(site.name)
        if len(attempt.acknowledged) == len(attempt.sites):
            for other in attempt.sites:
                self.send(attempt.coordinator, other, lambda other=other: self._open(attempt, other))

    def _open(self, attempt: Attempt, site: Site) -> None:
        decision = attempt.decision
        assert decision is not None
        if site.membership.sealed != attempt.generation:
            return
        if site.client not in decision.record.members:
            self.seen["leavers that are let go"] += 1
            site.is_alive = False
            return
        site.membership.open(attempt.generation)
        self.seen["joins"] += site.client in decision.record.joiners and bool(decision.landed)
        if not decision.record.drops:
            self.seen["redone exchanges"] += sum(key > decision.record.kept for key in site.transport._exchanges)
        self._note_joined(site, decision.record)
        site.transport.open(site.carrier)
        self.seen["dropped exchanges"] += len(site.transport.dropped)
        site.start()
        self.poke(self.world.lag(10.0))

    def _note_joined(self, site: Site, record: Record) -> None:
        if site.client in record.joiners:
            site.joined = record
            self.salts[site.client, record.generation] = site.salt


def rng_of(seed: int) -> random.Random:
    """The draws of a history."""
    return random.Random(seed * 7919 + 13)
