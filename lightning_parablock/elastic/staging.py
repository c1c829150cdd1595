"""The next generation of one member, built beside the live one: its server shard, and the commits that land with it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightning_parablock.blocks.partition import Block
from lightning_parablock.elastic.shard import VersionedShard
from lightning_parablock.elastic.store import CommittedStore
from lightning_parablock.errors import CallOrderError
from lightning_parablock.masking.scales import Scale
from lightning_parablock.regroup.keys import BEFORE_ALL, Key
from lightning_parablock.regroup.log import Record
from lightning_parablock.regroup.report import Decision, Source
from lightning_parablock.server.shard import StatePiece
from lightning_parablock.settings import Settings, Topology
from lightning_parablock.transport.chunks import shard_bounds

AsHeld = Callable[[int, int, Tensor], Tensor]


@dataclass(frozen=True)
class Staged:
    """A generation that this member could open.

    Attributes:
        decision: What was decided.
        server: This member's shard of the server.
        commits: W after each kept exchange that has not landed here, by exchange; for a member that starts fresh also
            the values that it begins with.
        begins_anew: Whether what the store holds is discarded.
        scales: For secure sums: the scales of these versions of W, as far as there are any.
    """

    decision: Decision
    server: VersionedShard
    commits: Mapping[Key, Tensor]
    begins_anew: bool
    scales: Mapping[Key, Scale] = field(default_factory=dict[Key, Scale])


def overlap(decision: Decision, source: Source, client: int, blocks: Sequence[Block], topology: Topology) -> bool:
    """Whether a piece of the generation before is part of a member's shard in the decided one."""
    numel = blocks[source.block].numel
    before, record = decision.log.records[-2], decision.record
    piece = _shard(before, source.server, numel, topology)
    mine = _shard(record, client, numel, topology)
    return max(piece.start, mine.start) < min(piece.stop, mine.stop)


def stage(
    decision: Decision,
    client: int,
    store: CommittedStore,
    given: Mapping[Key, Tensor],
    state: Iterable[StatePiece],
    *,
    blocks: Sequence[Block],
    settings: Settings,
    as_held: AsHeld | None,
    wanted: Sequence[Key] | None,
    scales: Mapping[Key, Scale],
) -> Staged:
    """Build a member's part of a generation; changes nothing that is live.

    Args:
        decision: What was decided.
        client: This member's client id.
        store: W as it has landed here.
        given: Commits from other members, by exchange.
        state: Pieces of server state, of any cut; what overlaps with the new shard counts.
        blocks: The partition.
        settings: Topology, codec and server optimizer.
        as_held: See :class:`~lightning_parablock.server.shard.ServerShard`.
        wanted: For a member that starts fresh: everything that its store begins with; None for a survivor.
        scales: For secure sums: of the versions that others have given.

    Raises:
        CallOrderError: a commit is missing.
    """
    record = decision.record
    commits = _commits(store, given, record.kept) if wanted is None else _begin(given, wanted)
    newest = {key[1]: key for key in sorted(commits)}
    values = [commits[newest[b]] if b in newest else store.newest(b) for b in range(len(blocks))]
    kept = [newest[b] if b in newest else store.newest_key(b) for b in range(len(blocks))]
    mine = [_shard(record, client, block.numel, settings.topology) for block in blocks]
    server = VersionedShard(
        settings.server_optimizer,
        [value[part].to(torch.float32, copy=True) for value, part in zip(values, mine, strict=True)],
        [part.start for part in mine],
        compression=settings.compression,
        as_held=as_held,
        generation=record.generation,
        kept=[key if key[0] >= 0 else BEFORE_ALL for key in kept],
    )
    server.load_state(state)
    return Staged(decision, server, commits, wanted is not None, scales)


def stays(before: Record | None, record: Record, server: int, numel: int, topology: Topology) -> bool:
    """Whether a server keeps the same piece of a block from one generation to the next."""
    if before is None or server not in before.members or server not in set(record.members) - set(record.joiners):
        return False
    return _shard(before, server, numel, topology) == _shard(record, server, numel, topology)


def keeper_of(record: Record, server: int) -> int | None:
    """Client id of the member that keeps a server's state in case it is lost: the next one; None if it is alone."""
    others = [client for client in record.members if client != server]
    return next((client for client in others if client > server), others[0]) if others else None


def _shard(record: Record, client: int, numel: int, topology: Topology) -> slice:
    return shard_bounds(numel, len(record.order), topology)[record.order.index(client)]


def _commits(store: CommittedStore, given: Mapping[Key, Tensor], kept: Key) -> dict[Key, Tensor]:
    landed = store.landed
    return {key: value for key, value in given.items() if landed < key <= kept}


def _begin(given: Mapping[Key, Tensor], wanted: Sequence[Key]) -> dict[Key, Tensor]:
    missing = [key for key in wanted if key not in given]
    if missing:
        raise CallOrderError(f"a joiner lacks the commits (round, block) {missing}")
    return {key: given[key] for key in wanted}
