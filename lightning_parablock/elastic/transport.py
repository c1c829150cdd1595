"""The one transport that an engine sees for a whole elastic fit, while the generations behind it come and go.

Two sides share it. The training thread submits exchanges, waits for them and asks before each round whether it may
begin. Threads of the site seal a generation, fetch what this member lacks, stage the next generation and open it.

A generation that is sealed lands nothing any more, so what this member has reported stays true; at the next opening
every exchange that is newer than the newest kept one is attempted again, in the order of the keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor
from typing_extensions import override

from lightning_parablock.elastic.exchange import ElasticExchange
from lightning_parablock.elastic.handing import HandingTransport
from lightning_parablock.elastic.shard import Backup, VersionedShard
from lightning_parablock.elastic.staging import Staged, keeper_of, stage, stays
from lightning_parablock.elastic.store import first_key
from lightning_parablock.elastic.version_scales import from_tensor
from lightning_parablock.errors import CallOrderError, DroppedError, SealedError
from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import Record
from lightning_parablock.regroup.report import Decision, Label, Standing
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.transport.base import Transport


class ElasticTransport(HandingTransport):
    """Carries the exchanges of one client through all generations; arguments are those of :class:`LandingTransport`."""

    reopened: tuple[Key, ...] = ()
    """The exchanges that the newest opening has attempted again, ascending."""
    dropped: tuple[Key, ...] = ()
    """Those that it has dropped, ascending."""

    @property
    def staged(self) -> Staged | None:
        """The generation that could open, with its server; None if there is none."""
        return self._staged

    def seal(self) -> tuple[Standing, int]:
        """From now on the open generation lands nothing and no round starts; returns what this member has."""
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
        """What this member would have in the staged generation."""
        with self._changed:
            staged = self._staged
            if staged is None:
                return None
            return Standing(staged.decision.log, staged.decision.record.kept, staged.server.labels())

    def drops(self, decision: Decision) -> list[Key]:
        """The exchanges that a decision drops, oldest first."""
        record = decision.record
        newer = self._calendar.between(decision.log, record.kept, record.first_round) if record.drops else []
        return [key for key in newer if record.has_dropped(key)]

    def stage(
        self,
        decision: Decision,
        commits: Mapping[Key, Tensor],
        state: Iterable[StatePiece] = (),
        scales: Mapping[Key, Tensor] | None = None,
    ) -> VersionedShard:
        """Build what this member needs of the decided generation, beside what is live; returns its server shard.

        Args:
            decision: What was decided.
            commits: What :meth:`lacking` has named.
            state: The pieces that :meth:`needed_state` has named.
            scales: What :meth:`scales_wanted` has named, as it travels.

        Raises:
            CallOrderError: a commit is missing.
            ProtocolError: a scale is none.
            DroppedError: this process was a member before, and the run has continued without it.
            SealedError: a newer generation is staged or open.
        """
        if self._begins_anew(decision) and self._started >= 0:
            raise DroppedError(
                f"the run has continued without {self.describe_client(self.client)}: what it has trained since then "
                "is discarded, and only a new process can join again"
            )
        with self._changed:
            ahead = self._kept_ahead(decision.log)
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
            scales=self._read_scales(scales or {}),
        )
        generation = decision.record.generation
        with self._changed:
            waiting = -1 if self._staged is None else self._staged.decision.record.generation
            if generation <= self._log.generation or generation < waiting:  # this took longer than its attempt lasted
                newest = max(self._log.generation, waiting)
                raise SealedError(f"generation {generation} is staged too late: {newest} is here already", newest)
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
            # Closes over the number only: what was staged holds all of W that it has brought.
            staged.server.on_served = lambda key: self._note_served(record.generation, key)
            self._known = {client: record.kept for client in record.members}
            before = staged.decision.log.records[-2] if len(staged.decision.log.records) > 1 else None
            self._backups.open(record.generation, record.kept, lambda b, s: self._stays(before, record, b, s))
            waiting, self._unread = self._unread, {}
            self._ahead.clear()
            self._residuals.clear()
            self.dropped = self._drop(staged.decision)
            landed += self.dropped
            self._carrier, self._is_sealed, self._trouble = carrier, carrier is None, None
            if self.client in record.joiners:
                self._serve_before(record.first_round)
            started = self.attempt([self._exchanges[key] for key in sorted(self._exchanges)])
            self.reopened = tuple(exchange.key for exchange, _ in started)
            self._changed.notify_all()
        for key in landed:
            self.on_landed(key)
        self.follow(started)
        if carrier is not None:
            for block in range(len(self._blocks)):
                if block in waiting or not self._is_kept(before, record, block):
                    self._send_backup(staged.server, block)

    def note_landed(self, client: int, key: Key, generation: int) -> None:
        """A member has said what has landed there; what it said in another generation does not count."""
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

    def _begins_anew(self, decision: Decision) -> bool:
        return self.client in decision.record.joiners and decision.donor not in (None, self.client)

    def _take_over(self, staged: Staged) -> list[Key]:
        """Put the staged W in place; returns what has landed with it. The caller holds the lock."""
        record, landed = staged.decision.record, list[Key]()
        if staged.begins_anew:
            self.store.begin_with(list(staged.commits.items()), record.kept)
            self.scales.begin_with(staged.scales.items())
            self._exchanges.clear()
            self._merged = self._settings.delay.newest_due_at_start(record.first_round)
        else:
            for key in sorted(staged.commits):
                self.store.land(key, staged.commits[key])
                self.scales.land(key, staged.scales.get(key))
                landed.append(key)
            if not landed and record.kept > self.store.landed:  # a run that begins with a checkpoint
                self.store.begin_with([(first_key(b), self.store.newest(b)) for b in range(len(self._blocks))],
                                      record.kept)  # fmt: skip
        for key, exchange in self._exchanges.items():
            if key <= record.kept:
                exchange.note_landed()
        return landed

    def _drop(self, decision: Decision) -> tuple[Key, ...]:
        """Land what the decision drops, with W as before it; the caller holds the lock."""
        dropped = self.drops(decision)
        for key in dropped:
            self.store.land(key, self.store.newest(key[1]))
            if key in self._exchanges:
                self._exchanges[key].note_dropped()
        if dropped:
            self._known[self.client] = dropped[-1]
        return tuple(dropped)

    def _read_scales(self, scales: Mapping[Key, Tensor]) -> dict[Key, Scale]:
        read = {
            key: from_tensor(values, self._blocks[key[1]].numel, "the member that gives W")
            for key, values in scales.items()
        }
        return {key: scale for key, scale in read.items() if scale is not None}

    def _serve_before(self, first_round: int) -> None:
        """A joiner serves rounds that its own engine does not train; the caller holds the lock."""
        for key in self._calendar.between(self._log, self.store.landed, first_round):
            cohort = self._calendar.work_of(self._log, key[0])[key[1]]
            self._exchanges.setdefault(key, ElasticExchange(key, cohort, self, self._device))

    @override
    def close(self) -> None:
        self.seal()

    # --- server state -------------------------------------------------------------------------------------------------

    def _note_served(self, generation: int, key: Key) -> None:
        """This server's part of an exchange is complete: the next member keeps the state after it, too."""
        with self._changed:
            server = self._shard
            is_live = not self._is_sealed and generation == self._log.generation
        if is_live and server is not None:
            self._send_backup(server, key[1])

    def _send_backup(self, server: VersionedShard, block: int) -> None:
        labels = server.labels().get(block, ()) if server.values[block].numel() else ()
        keeper = keeper_of(self._log.newest, self.client)
        if labels and keeper is not None:
            label = labels[-1]
            with self._changed:
                self._unread[block] = label
            # Closes over no server: it may wait for longer than its generation lasts.
            self.send_backup(keeper, Backup(block, self.client, label, lambda: self._read_backup(block, label)))

    def _read_backup(self, block: int, label: Label) -> list[StatePiece] | None:
        """A version of this server's state; None where it is of no use: no member keeps one of an older generation."""
        with self._changed:
            server = self._shard
            if server is None or server.generation != label[1]:
                return None
            if self._unread.get(block) == label:
                del self._unread[block]
        return server.piece(block, label)

    def _stays(self, before: Record | None, record: Record, block: int, server: int) -> bool:
        return stays(before, record, server, self._blocks[block].numel, self._settings.topology)

    def _is_kept(self, before: Record | None, record: Record, block: int) -> bool:
        """Whether the member that keeps this server's piece has kept it already, so that it waits for a newer one."""
        keeper = keeper_of(record, self.client)
        if before is None or keeper is None or keeper in record.joiners or keeper != keeper_of(before, self.client):
            return False
        return self._stays(before, record, block, self.client)
