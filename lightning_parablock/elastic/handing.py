"""What a member gives to others when the members change, and what it needs of them: commits, scales, server state."""

from __future__ import annotations

from torch import Tensor

from lightning_parablock.elastic.landing import LandingTransport
from lightning_parablock.elastic.staging import overlap
from lightning_parablock.elastic.version_scales import as_tensor
from lightning_parablock.errors import CallOrderError
from lightning_parablock.regroup.keys import Key
from lightning_parablock.regroup.log import MembershipLog, Record
from lightning_parablock.regroup.report import Decision, Source
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.settings import SecureAggregation


class HandingTransport(LandingTransport):
    """Gives what has landed here or is staged, and names what is lacking; arguments are those of its base."""

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
            held = self._kept_ahead(log)
        return [key for key in self._for_joiner(decision) if key not in held]

    def _for_joiner(self, decision: Decision) -> list[Key]:
        """W as of what has been merged at the start of round n, and every kept exchange that is merged later."""
        record, log = decision.record, decision.log
        due = self._settings.delay.newest_due_at_start(record.first_round)
        upto = min(record.kept, (due, len(self._blocks)))
        begin = [self._calendar.newest_of(log, block, upto) for block in range(len(self._blocks))]
        later = self._calendar.between(log, upto, record.kept[0] + 1)
        first = [key if key[0] >= 0 else (-1, block) for block, key in enumerate(begin)]
        return sorted(first) + [key for key in later if key <= record.kept]

    def scales_wanted(self, decision: Decision) -> list[Key]:
        """For secure sums: the versions of W whose scales this member must pull before it can stage the decision."""
        if not isinstance(self._settings.aggregation, SecureAggregation) or decision.donor in (None, self.client):
            return []
        return self._for_joiner(decision) if self.client in decision.record.joiners else self.lacking(decision)

    def scale_of(self, key: Key) -> Tensor:
        """The scale of the block's version after an exchange, as it travels; for a member that lacks it."""
        with self._changed:
            staged = self._staged
            given = None if staged is None else staged.scales.get(key)
        return as_tensor(self.scales.at(key) if given is None else given)

    def commit_of(self, key: Key) -> Tensor:
        """W of the exchange's block after it, shape (numel,), float32, on the host; for a member that lacks it."""
        with self._changed:
            staged = self._staged
            if staged is not None and key in staged.commits:
                return staged.commits[key]
        return self.store.at(key)

    def newest(self) -> tuple[Record, list[Key]]:
        """What a guest can take ahead: of each block the newest exchange that has landed here, and in which generation.

        Raises:
            CallOrderError: no generation has opened here yet.
        """
        with self._changed:
            if not self._log.records:
                raise CallOrderError("this site has not opened its exchanges yet")
            return self._log.newest, [self.store.newest_key(block) for block in range(self.store.n_blocks)]

    def take_ahead(self, key: Key, value: Tensor, landed: Record) -> None:
        """As a guest: hold a value of W that a decision may need, so that :meth:`lacking` does not name it.

        Args:
            key: The exchange after which the value was W of its block.
            value: Shape (numel,), float32, on the host.
            landed: The generation that was open at the giver: a later one may redo the exchange with another result.
        """
        with self._changed:
            self._ahead[key] = value, landed
            self._forget_ahead()

    def _kept_ahead(self, log: MembershipLog) -> dict[Key, Tensor]:
        """What was taken ahead, without what a log has redone since; the caller holds the lock."""
        return {key: value for key, (value, landed) in self._ahead.items() if log.has_kept(key, landed)}

    def _forget_ahead(self) -> None:
        """A joiner begins with W as of a round that is due; what is much older is not asked for again."""
        newest = max(key[0] for key in self._ahead)
        due = self._settings.delay.newest_due_at_start(newest) - 1
        begins = dict[int, Key]()
        for key in sorted(self._ahead):
            if key[0] <= due:
                begins[key[1]] = key
        for key in [key for key in self._ahead if key < begins.get(key[1], key)]:
            del self._ahead[key]

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
            # Others may have opened what this member has acknowledged, and ask before it has heard of it.
            staged = None if self._staged is None else self._staged.server
            shards = [shard for shard in (self._shard, staged) if shard is not None and shard.generation == label[1]]
            if source.server == self.client:
                found = next((shard.piece(source.block, label) for shard in shards), None)
            else:
                found = self._backups.piece(source.block, source.server, label)
        if found is None:
            raise CallOrderError(f"the server state {source} is not here")
        return found
