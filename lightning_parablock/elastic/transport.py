"""The one transport that an engine sees for a whole elastic fit, while the generations behind it come and go.

Two sides share it. The training thread submits exchanges, waits for them and asks before each round whether it may
begin. Threads of the site seal a generation, fetch what this member lacks, stage the next generation and open it.

An attempt is an exchange in one generation. When it is over, and every exchange before it has landed, its commit lands
in the store. A generation that is sealed lands nothing any more, so what this member has reported stays true; at the
next opening every exchange that is newer than the newest kept one is attempted anew, in the order of the keys.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.elastic.calendar import Calendar
from lightning_parablock.elastic.exchange import ElasticExchange
from lightning_parablock.elastic.shard import Backup, Backups, VersionedShard
from lightning_parablock.elastic.staging import Staged, overlap, stage
from lightning_parablock.elastic.store import CommittedStore, first_key
from lightning_parablock.errors import CallOrderError, MembershipError, PeerTimeoutError
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.keys import Key, newest_due_at_start
from lightning_parablock.regroup.log import MembershipLog
from lightning_parablock.regroup.report import Decision, Label, Source, Standing
from lightning_parablock.server.shard import ServerShard, StatePiece
from lightning_parablock.settings import Settings
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.transport.base import Exchange, Transport, Upload

_POLL_S = 0.05


class ElasticTransport(Transport):
    """Carries the exchanges of one client through all generations.

    Args:
        client: Id of this site's client; may be set later, before the first generation is staged.
        blocks: The partition.
        settings: Topology, codec, server optimizer, delay and ``straggler_timeout_s``.
        schedule: The run's schedule; its cohorts are drawn from the membership log.
        store: W of all blocks, on the host.
        rejoin_timeout_s: Longest wait for the next generation.
        as_held: See :class:`~lightning_parablock.server.shard.ServerShard`.
        device: The model's device.
        check: Raises what ends this site's part in the run, if anything does; called often, without a lock.
        changed: Lock and notification; None for its own.

    Attributes:
        client: Id of this site's client; -1 for none yet.
        on_landed: Called with each exchange that has landed here; on any thread, without a lock.
        on_trouble: Called with the first error of a generation's exchanges, if it was not sealed before.
        send_backup: Called with a member's client id and a version of this server's state that it is to keep.
    """

    def __init__(
        self,
        blocks: Sequence[Block],
        settings: Settings,
        schedule: Schedule,
        store: CommittedStore,
        *,
        client: int = -1,
        rejoin_timeout_s: float,
        as_held: Callable[[int, int, Tensor], Tensor] | None = None,
        device: torch.device | None = None,
        check: Callable[[], None] = lambda: None,
        changed: threading.Condition | None = None,
    ) -> None:
        super().__init__(ServerShard(settings.server_optimizer, [], compression=settings.compression))
        self.client, self.store = client, store
        self.on_landed: Callable[[Key], None] = lambda key: None
        self.on_trouble: Callable[[Exception], None] = lambda error: None
        self.send_backup: Callable[[int, Backup], None] = lambda client, backup: None
        self._blocks, self._settings, self._calendar = blocks, settings, Calendar(schedule)
        self._rejoin_timeout_s, self._as_held = rejoin_timeout_s, as_held
        self._device = device if device is not None else torch.device("cpu")
        self._check = check
        self._changed = changed if changed is not None else threading.Condition(threading.RLock())
        self._log = MembershipLog()
        self._exchanges: dict[Key, ElasticExchange] = {}
        self._backups = Backups()
        self._known: dict[int, Key] = {}
        self._shard: VersionedShard | None = None
        self._carrier: Transport | None = None
        self._is_sealed = True
        self._staged: Staged | None = None
        self._ahead: dict[Key, Tensor] = {}
        self._trouble: Exception | None = None
        self._started = self._merged = -1

    # --- what the engine calls ----------------------------------------------------------------------------------------

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        key = (round_index, block)
        with self._changed:
            exchange = self._exchanges.get(key)
            started = []
            if exchange is None:
                exchange = self._exchanges[key] = ElasticExchange(key, cohort, self, self._device)
                if key <= self.store.landed:  # without this member, which contributed nothing
                    exchange.note_landed()
                else:
                    exchange.uploads = dict(uploads)
                    started = self._attempt([exchange])
        self._follow(started)
        return exchange

    @override
    def await_round(self, round_index: int) -> None:
        self._wait_for(lambda: self._note_started(round_index), lambda: f"round {round_index}")

    def await_landed(self, exchange: ElasticExchange) -> Tensor:
        """See :class:`~lightning_parablock.elastic.exchange.Landing`.

        Raises:
            PeerTimeoutError: it has not landed within ``straggler_timeout_s`` of an opening, or no generation has
                opened within ``rejoin_timeout_s``.
        """
        key = exchange.key
        name = self._blocks[key[1]].name
        self._wait_for(lambda: key <= self.store.landed, lambda: f"round {key[0]}, block {name!r}")
        return self.store.at(key)

    @override
    def settle(self, round_index: int) -> None:
        with self._changed:
            self._merged = max(self._merged, round_index)
            for key in [key for key in self._exchanges if key[0] <= round_index]:
                del self._exchanges[key]
            self._prune()

    @override
    def check(self, round_index: int, block: int) -> None:
        self._check()

    @override
    def note_step(self, round_index: int) -> None:
        """Who is alive is the arbiter's to say."""

    @override
    def announce_end(self, rounds: int) -> None:
        """All members end after the same round, and stay until every one of them holds all commits."""

    @override
    def describe_client(self, client: int) -> str:
        name = self._log.newest.sites.get(client) if self._log.records else None
        return super().describe_client(client) if name is None else f"site {name} (client {client})"

    @property
    @override
    def server(self) -> ServerShard:
        """This member's shard in the newest generation; empty before the first one."""
        return super().server if self._shard is None else self._shard

    @override
    def server_state(self) -> list[StatePiece]:
        """Nothing: a run that continues from a checkpoint begins with nothing in flight, and servers begin anew."""
        return []

    @override
    def load_server_state(self, pieces: Iterable[StatePiece]) -> None:
        """See :meth:`server_state`."""

    @override
    def close(self) -> None:
        self.seal()

    # --- what a regroup calls -----------------------------------------------------------------------------------------

    @property
    def log(self) -> MembershipLog:
        """The log up to the generation that was opened last."""
        return self._log

    @property
    def started(self) -> int:
        """The newest round that has started here; -1 for none."""
        return self._started

    @property
    def merged_round(self) -> int:
        """The newest round whose commits are part of this client's W; -1 for none."""
        return self._merged

    @property
    def staged(self) -> Staged | None:
        """The generation that could open, with its server; None if there is none."""
        return self._staged

    def seal(self) -> tuple[Standing, int]:
        """From now on the open generation lands nothing and no round starts; returns where this member stands."""
        with self._changed:
            self._is_sealed = True
            carrier, self._carrier = self._carrier, None
            for exchange in self._exchanges.values():
                exchange.attempt = None
            if carrier is not None:
                # Before the report: what leaves later could land elsewhere, and be kept without its state here.
                carrier.close()
            self._changed.notify_all()
            served = self._shard.labels() if self._shard is not None else {}
            backups = self._backups.labels(self._log.generation)
            return Standing(self._log, self.store.landed, served, backups), self._started

    def acknowledged_standing(self) -> Standing | None:
        """Where this member would stand in the staged generation."""
        with self._changed:
            staged = self._staged
            if staged is None:
                return None
            return Standing(staged.decision.log, staged.decision.record.kept, staged.server.labels())

    def lacking(self, decision: Decision) -> list[Key]:
        """The commits that this member must pull before it can stage the decision, oldest first.

        Round -1 stands for the block's value before the first exchange.
        """
        record, log = decision.record, decision.log
        if decision.donor is None or decision.donor == self.client:
            return []
        with self._changed:
            if self.client not in record.joiners:
                newer = self._calendar.between(log, self.store.landed, record.kept[0] + 1)
                return [key for key in newer if key <= record.kept]
            held = set(self._ahead)
        return [key for key in self._for_joiner(decision) if key not in held]

    def _for_joiner(self, decision: Decision) -> list[Key]:
        """W as of what has been merged at the start of round n, and every kept exchange that is merged later."""
        record, log = decision.record, decision.log
        due = newest_due_at_start(record.first_round, *self._settings.delay_rounds_and_steps)
        upto = min(record.kept, (due, len(self._blocks)))
        begin = [self._calendar.newest_of(log, block, upto) for block in range(len(self._blocks))]
        later = self._calendar.between(log, upto, record.kept[0] + 1)
        first = [key if key[0] >= 0 else (-1, block) for block, key in enumerate(begin)]
        return sorted(first) + [key for key in later if key <= record.kept]

    def commit_of(self, key: Key) -> Tensor:
        """W of the exchange's block after it, shape (numel,), float32, on the host; for a member that lacks it."""
        with self._changed:
            staged = self._staged
            if staged is not None and key in staged.commits:
                return staged.commits[key]
        return self.store.at(key)

    def values_at_start(self, round_index: int) -> dict[int, Tensor]:
        """W of each block as of what is merged when a round begins, for an engine that begins with it.

        Waits for the exchanges that are merged by then and have not landed here yet, as :meth:`await_landed` does.
        """
        due = newest_due_at_start(round_index, *self._settings.delay_rounds_and_steps)
        if due >= self._log.records[0].first_round:
            last = (due, max(self._calendar.work_of(self._log, due)))
            self._wait_for(lambda: self.store.landed >= last, lambda: f"the commits of rounds up to {due}")
        return {block: self.store.value_before(block, due)[1] for block in range(len(self._blocks))}

    def newest_keys(self) -> list[Key]:
        """Of each block the newest exchange that has landed here: what a guest can take ahead."""
        return [self.store.newest_key(block) for block in range(self.store.n_blocks)]

    def take_ahead(self, key: Key, value: Tensor) -> None:
        """As a guest: hold a value of W that a decision may need, so that :meth:`lacking` does not name it."""
        with self._changed:
            self._ahead[key] = value

    def needed_state(self, decision: Decision) -> list[Source]:
        """The pieces of server state that this member must pull before it can stage the decision."""
        return [
            source
            for source in decision.sources
            if source.holder not in (None, self.client)
            and overlap(decision, source, self.client, self._blocks, self._settings.topology)
        ]

    def state_of(self, source: Source) -> list[StatePiece]:
        """A piece of server state that this member holds, for one that needs it.

        Raises:
            CallOrderError: it is not here.
        """
        label = source.label
        assert label is not None
        with self._changed:
            # Others may have opened what this member has acknowledged, and ask before it has heard so.
            staged = None if self._staged is None else self._staged.server
            shards = [shard for shard in (self._shard, staged) if shard is not None and shard.generation == label[1]]
            if source.server == self.client:
                found = next((shard.piece(source.block, label) for shard in shards), None)
            else:
                found = self._backups.piece(source.block, source.server, label)
        if found is None:
            raise CallOrderError(f"the server state {source} is not here")
        return found

    def stage(
        self, decision: Decision, commits: Mapping[Key, Tensor], state: Iterable[StatePiece] = ()
    ) -> VersionedShard:
        """Build what this member needs of the decided generation, beside what is live; returns its server shard.

        Args:
            decision: What was decided.
            commits: What :meth:`lacking` has named.
            state: The pieces that :meth:`needed_state` has named.

        Raises:
            CallOrderError: a commit is missing.
            MembershipError: this process was a member before, and the run has continued without it.
        """
        if self._begins_anew(decision) and self._started >= 0:
            raise MembershipError(
                f"the run has continued without {self.describe_client(self.client)}: what it has trained since then "
                "counts for nothing, and only a new process can join again"
            )
        with self._changed:
            ahead = dict(self._ahead)
        own = [piece for source in decision.sources if source.holder == self.client for piece in self.state_of(source)]
        staged = stage(
            decision,
            self.client,
            self.store,
            {**ahead, **commits},
            [*own, *state],
            blocks=self._blocks,
            settings=self._settings,
            as_held=self._as_held,
            wanted=self._for_joiner(decision) if self._begins_anew(decision) else None,
        )
        with self._changed:
            self._staged = staged
        return staged.server

    def open(self, carrier: Transport | None) -> None:
        """Make the staged generation the live one, and attempt again what is newer than its newest kept exchange.

        Args:
            carrier: Carries the exchanges of the generation; None where others have opened it and a further regroup is
                under way: then this member stays sealed.
        """
        with self._changed:
            staged, self._staged = self._staged, None
            if staged is None:
                raise CallOrderError("no generation is staged")
            record = staged.decision.record
            landed = self._take_over(staged)
            self._log, self._shard = staged.decision.log, staged.server
            staged.server.on_served = lambda key: self._note_served(staged.server, key)
            self._known = {client: record.kept for client in record.members}
            self._backups.forget_before(record.generation)
            self._ahead.clear()
            self._carrier, self._is_sealed, self._trouble = carrier, carrier is None, None
            if self.client in record.joiners:
                self._serve_before(record.first_round)
            started = self._attempt([self._exchanges[key] for key in sorted(self._exchanges)])
            self._changed.notify_all()
        for key in landed:
            self.on_landed(key)
        self._follow(started)
        if carrier is not None:
            for block in range(len(self._blocks)):
                self._send_backup(staged.server, block)

    def note_landed(self, client: int, key: Key, generation: int) -> None:
        """A member has said what has landed there; what it said in another generation counts for nothing."""
        with self._changed:
            if generation == self._log.generation and client in self._known and key > self._known[client]:
                self._known[client] = key
                self._prune()

    def take_backup(self, block: int, server: int, label: Label, pieces: Iterable[StatePiece]) -> None:
        """Keep a version of another server's state."""
        with self._changed:
            if label[1] > self._log.generation:
                self._backups.take(block, server, label, pieces)
            elif label[1] == self._log.generation and not self._is_sealed:  # else it would replace what was reported
                self._backups.take(block, server, label, pieces)
                self._backups.release(self.store.landed)

    # --- inside -------------------------------------------------------------------------------------------------------

    def _note_started(self, round_index: int) -> bool:
        if not self._is_sealed:
            self._started = max(self._started, round_index)
        return not self._is_sealed

    def _wait_for(self, is_done: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait, in slices, so that errors, Ctrl-C and SIGTERM are seen; each opening begins the limit anew."""
        wait, began = LimitedWait(self._settings.straggler_timeout_s, reports=LATE), None
        while True:
            with self._changed:
                if is_done():
                    return
                phase = (self._log.generation, self._is_sealed)
                if phase != began:
                    limit_s = self._rejoin_timeout_s if self._is_sealed else self._settings.straggler_timeout_s
                    wait, began = LimitedWait(limit_s, reports=LATE), phase
                self._changed.wait(_POLL_S)
                if is_done():
                    return
            self._check()
            if wait.is_over:
                raise PeerTimeoutError(f"{what()}: {self._late()} after {wait.limit_s:g} s; {self._advice()}")
            wait.report(lambda: f"{what()}: {self._late()}")

    def _late(self) -> str:
        with self._changed:
            if self._is_sealed:
                newest = f"generation {self._log.generation}" if self._log.records else "any generation"
                return f"no members for a generation after {newest} have been found"
            members = ", ".join(self.describe_client(client) for client in self._log.newest.members)
            trouble = "" if self._trouble is None else f" (a transfer has failed: {self._trouble})"
            return f"not finished by the members of generation {self._log.generation}, {members}{trouble}"

    def _advice(self) -> str:
        if self._is_sealed:
            return "start the lost sites again, or raise rejoin_timeout_s"
        return "raise straggler_timeout_s if a client needs longer than that for its local steps"

    def _attempt(self, exchanges: Iterable[ElasticExchange]) -> list[_Attempt]:
        """Submit exchanges that have not landed to the generation that is open; the caller holds the lock."""
        carrier, started = self._carrier, list[_Attempt]()
        for exchange in exchanges:
            if carrier is not None and exchange.key > self.store.landed:
                contributors = self._log.contributors(exchange.key, exchange.cohort)
                own = {client: upload for client, upload in exchange.uploads.items() if client in contributors}
                exchange.is_over, exchange.attempt = False, carrier.submit(*exchange.key, own, contributors)
                started.append((exchange, exchange.attempt))
        return started

    def _follow(self, started: Iterable[_Attempt]) -> None:
        for exchange, attempt in started:
            attempt.when_over(lambda exchange=exchange, attempt=attempt: self._note_over(exchange, attempt))

    def _note_over(self, exchange: ElasticExchange, attempt: Exchange) -> None:
        """Land every exchange that is over and has none before it; called by threads of any generation."""
        landed, trouble = list[Key](), None
        with self._changed:
            if exchange.attempt is not attempt:  # of a generation that is sealed
                return
            exchange.is_over = True
            while (ready := self._next_over()) is not None:
                try:
                    self._land(*ready)
                except Exception as error:  # the next generation repeats it; whoever can tell why is told
                    trouble = error if self._trouble is None else None
                    self._trouble = self._trouble or error
                    break
                landed.append(ready[0].key)
            self._changed.notify_all()
        for key in landed:
            self.on_landed(key)
        if trouble is not None:
            self.on_trouble(trouble)

    def _next_over(self) -> _Attempt | None:
        landed = self.store.landed
        key = min((key for key in self._exchanges if key > landed), default=None)
        exchange = None if key is None else self._exchanges[key]
        if exchange is None or exchange.attempt is None or not exchange.is_over:
            return None
        return exchange, exchange.attempt

    def _land(self, exchange: ElasticExchange, attempt: Exchange) -> None:
        key = exchange.key
        value = attempt.wait(lambda: self.store.newest(key[1]).to(self._device))
        self.store.land(key, value.cpu())
        exchange.note_landed()
        self._known[self.client] = key
        self._prune()

    def _prune(self) -> None:
        """Drop what no member, joiner or redone exchange can ask for any more; the caller holds the lock."""
        due = newest_due_at_start(self._started + 1, *self._settings.delay_rounds_and_steps)
        if self._known:
            self.store.prune(min(self._known.values()), min(self._merged, due))
        if self._shard is not None:
            self._shard.release(self.store.landed)
        self._backups.release(self.store.landed)

    def _begins_anew(self, decision: Decision) -> bool:
        return self.client in decision.record.joiners and decision.donor not in (None, self.client)

    def _take_over(self, staged: Staged) -> list[Key]:
        """Put the staged W in place; returns what has landed with it. The caller holds the lock."""
        record, landed = staged.decision.record, list[Key]()
        if staged.begins_anew:
            self.store.begin_with(list(staged.commits.items()), record.kept)
            self._exchanges.clear()
            self._merged = newest_due_at_start(record.first_round, *self._settings.delay_rounds_and_steps)
        else:
            for key in sorted(staged.commits):
                self.store.land(key, staged.commits[key])
                landed.append(key)
            if not landed and record.kept > self.store.landed:  # a run that begins with a checkpoint
                self.store.begin_with([(first_key(b), self.store.newest(b)) for b in range(len(self._blocks))],
                                      record.kept)  # fmt: skip
        for key, exchange in self._exchanges.items():
            if key <= record.kept:
                exchange.note_landed()
        return landed

    def _serve_before(self, first_round: int) -> None:
        """A joiner serves rounds that its own engine does not train; the caller holds the lock."""
        for key in self._calendar.between(self._log, self.store.landed, first_round):
            cohort = self._calendar.work_of(self._log, key[0])[key[1]]
            self._exchanges.setdefault(key, ElasticExchange(key, cohort, self, self._device))

    # --- server state -------------------------------------------------------------------------------------------------

    def _note_served(self, server: VersionedShard, key: Key) -> None:
        """This server's part of an exchange is complete: the next member keeps the state after it, too."""
        with self._changed:
            is_live = server is self._shard and not self._is_sealed
        if is_live:
            self._send_backup(server, key[1])

    def _send_backup(self, server: VersionedShard, block: int) -> None:
        labels = server.labels().get(block, ()) if server.values[block].numel() else ()
        others = [client for client in self._log.newest.members if client != self.client]
        if labels and others:
            keeper = next((client for client in others if client > self.client), others[0])
            label = labels[-1]
            self.send_backup(keeper, Backup(block, self.client, label, lambda: server.piece(block, label)))


_Attempt = tuple[ElasticExchange, Exchange]
