"""The engine's side of an elastic transport: exchanges that are attempted in one generation after the other, and land.

An attempt is an exchange in one generation. When it is over, and every exchange before it has landed, its commit lands
in the store. A generation that is sealed lands nothing any more; :mod:`lightning_parablock.elastic.transport` opens the
next one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.feedback import Residual
from lightning_parablock.elastic.calendar import Calendar
from lightning_parablock.elastic.exchange import ElasticExchange
from lightning_parablock.elastic.patience import Patience
from lightning_parablock.elastic.shard import Backup, Backups, VersionedShard
from lightning_parablock.elastic.staging import Staged
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.elastic.version_scales import VersionScales
from lightning_parablock.errors import PeerTimeoutError
from lightning_parablock.federation.schedule import Schedule
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Label
from lightning_parablock.server.shard import ServerShard, StatePiece
from lightning_parablock.server.uploads import Upload
from lightning_parablock.settings import Settings
from lightning_parablock.system.bare_errors import bare
from lightning_parablock.transport.base import Exchange, Transport

_POLL_S = 0.05

Attempted = tuple[ElasticExchange, Exchange]
"""An exchange with its attempt in the generation that is open."""


class LandingTransport(Transport):
    """What the engine of one client calls, whichever generation is open.

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
        scales: For secure sums: the scales of the versions in the store.
        on_landed: Called with each exchange that has landed here; on any thread, without a lock.
        uploaded_bytes: Bytes of this site's messages in all exchanges that have landed here, with headers.
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
        self.scales = VersionScales(len(blocks), settings.delay)
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
        self._unread: dict[int, Label] = {}  # of each block the version that waits to leave for its keeper
        self._known: dict[int, Key] = {}
        self._residuals: dict[int, Tensor] = {}  # by identity: what the open generation has in place of a residual
        self._shard: VersionedShard | None = None
        self._carrier: Transport | None = None
        self._is_sealed = True
        self._staged: Staged | None = None
        self._ahead: dict[Key, tuple[Tensor, Record]] = {}
        self._trouble: Exception | None = None
        self._failure: Exception | None = None
        """The newest error of an exchange since one has landed, in whichever generation."""
        self._started = self._merged = -1
        self.uploaded_bytes = 0

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

    @override
    def submit(self, round_index: int, block: int, uploads: Mapping[int, Upload], cohort: Sequence[int]) -> Exchange:
        key = (round_index, block)
        with self._changed:
            exchange = self._exchanges.get(key)
            started = []
            if exchange is None:
                exchange = self._exchanges[key] = ElasticExchange(key, cohort, self, self._device)
                if self._log.has_dropped(key):
                    exchange.uploads = dict(uploads)
                    exchange.note_dropped()
                elif key <= self.store.landed:  # without this member, which contributed nothing
                    exchange.note_landed()
                else:
                    exchange.uploads = dict(uploads)
                    started = self.attempt([exchange])
        self.follow(started)
        return exchange

    @override
    def await_round(self, round_index: int) -> None:
        self._wait_for(lambda: self._note_started(round_index), lambda: f"round {round_index}")

    def await_landed(self, exchange: ElasticExchange) -> Tensor:
        """See :class:`~lightning_parablock.elastic.exchange.Landing`.

        Raises:
            PeerTimeoutError: it has not landed within ``straggler_timeout_s``, or no generation has opened within
                ``rejoin_timeout_s``: see :class:`~lightning_parablock.elastic.patience.Patience`.
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
            carrier = self._carrier
        if carrier is not None:
            carrier.settle(round_index)

    @override
    def expect(self, round_index: int, work: Mapping[int, Sequence[int]]) -> None:
        with self._changed:
            carrier = self._carrier
        if carrier is not None:
            carrier.expect(round_index, work)

    @override
    def check(self, round_index: int, block: int) -> None:
        self._check()

    @override
    def note_step(self, round_index: int) -> None:
        """The arbiter says who is alive."""

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
        """Nothing: a run that continues from a checkpoint begins with nothing in flight, and servers start fresh."""
        return []

    @override
    def load_server_state(self, pieces: Iterable[StatePiece]) -> None:
        """See :meth:`server_state`."""

    def values_at_start(self, round_index: int) -> dict[int, Tensor]:
        """W of each block as of what is merged when a round begins, for an engine that begins with it.

        Waits for the exchanges that are merged by then and have not landed here yet, as :meth:`await_landed` does.
        """
        due = self._settings.delay.newest_due_at_start(round_index)
        if due >= self._log.records[0].first_round:
            last = (due, max(self._calendar.work_of(self._log, due)))
            self._wait_for(lambda: self.store.landed >= last, lambda: f"the commits of rounds up to {due}")
        return {block: self.store.value_before(block, due)[1] for block in range(len(self._blocks))}

    # --- inside -------------------------------------------------------------------------------------------------------

    def _note_started(self, round_index: int) -> bool:
        if not self._is_sealed:
            self._started = max(self._started, round_index)
        return not self._is_sealed

    def _wait_for(self, is_done: Callable[[], bool], what: Callable[[], str]) -> None:
        """Wait, in slices, so that errors, Ctrl-C and SIGTERM are seen."""
        patience = Patience(self._settings.straggler_timeout_s, self._rejoin_timeout_s)
        while True:
            with self._changed:
                if is_done():
                    return
                self._changed.wait(_POLL_S)
                if is_done():
                    return
                wait, end = patience.now(self._log, self._is_sealed, self.store.landed), ""
                if wait.is_over:  # in words of the phase whose limit this is: the next one may begin at any time
                    end = f"{what()}: {self._late()} within {wait.limit_s:g} s; {self._advice()}"
            self._check()
            if end:
                raise PeerTimeoutError(end)
            wait.report(lambda: f"{what()}: {self._late()}{self._hint()}")

    def _late(self) -> str:
        with self._changed:
            generation = self._log.generation
            if self._is_sealed:
                return f"too few sites to {f'continue after generation {generation}' if generation >= 0 else 'begin'}"
            others = [client for client in self._log.newest.members if client != self.client]
            names = ", ".join(map(self.describe_client, others))
            by = (
                f"by the other members of generation {generation}, {names}" if others else f"in generation {generation}"
            )
            trouble = "" if self._failure is None else f" (a transfer has failed: {self._failure})"
            return f"not finished {by}{trouble}"

    def _hint(self) -> str:
        """What to do before the limit has passed."""
        return "; start the lost sites again with the same command" if self._is_sealed else ""

    def _advice(self) -> str:
        if self._is_sealed:
            return "start the lost sites again, or raise rejoin_timeout_s"
        if self._failure is not None:
            return "it fails whenever the members connect: see the logs of all sites, and the network between them"
        return "raise straggler_timeout_s if a client needs longer than that for its local steps"

    def attempt(self, exchanges: Iterable[ElasticExchange]) -> list[Attempted]:
        """Submit exchanges that have not landed to the generation that is open; the caller holds the lock."""
        carrier, started = self._carrier, list[Attempted]()
        for exchange in exchanges:
            if carrier is not None and exchange.key > self.store.landed:
                contributors = self._log.contributors(exchange.key, exchange.cohort)
                own = {client: self._draft(u) for client, u in exchange.uploads.items() if client in contributors}
                exchange.drafts, exchange.is_over = own, False
                exchange.attempt = carrier.submit(*exchange.key, own, contributors)
                started.append((exchange, exchange.attempt))
        return started

    def _draft(self, upload: Upload) -> Upload:
        """The upload for one generation: a thread that outlives it must not write into a residual in use."""
        residual = upload.residual
        if residual is None:
            return upload
        before = None if residual.before is None else self._residuals.get(id(residual.before), residual.before)
        draft = Residual(before, torch.empty_like(residual.after))
        self._residuals[id(residual.after)] = draft.after
        return replace(upload, residual=draft)

    def follow(self, started: Iterable[Attempted]) -> None:
        """Land what :meth:`attempt` has submitted as soon as it is over; called without the lock."""
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
                except Exception as error:  # the next generation repeats it; on_trouble finds out why
                    failure = bare(error)
                    trouble = failure if self._trouble is None else None
                    self._trouble, self._failure = self._trouble or failure, failure
                    break
                landed.append(ready[0].key)
            self._changed.notify_all()
        for key in landed:
            self.on_landed(key)
        if trouble is not None:
            self.on_trouble(trouble)

    def _next_over(self) -> Attempted | None:
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
        self._failure = None
        assert self._carrier is not None, "an attempt has a carrier"
        self.scales.land(key, self._carrier.told(key))
        for upload in exchange.uploads.values():
            if upload.residual is not None:
                self._residuals.pop(id(upload.residual.after), None)
        exchange.note_landed()
        self.uploaded_bytes += exchange.facts.upload_bytes
        self._known[self.client] = key
        self._prune()

    def _prune(self) -> None:
        """Drop what no member, joiner or redone exchange can ask for any more; the caller holds the lock."""
        due = self._settings.delay.newest_due_at_start(self._started + 1)
        if self._known:
            self.store.prune(min(self._known.values()), min(self._merged, due))
            self.scales.prune(lambda block: self.store.keys(block)[0])
        if self._shard is not None:
            self._shard.release(self.store.landed)
        self._backups.release(self.store.landed)
