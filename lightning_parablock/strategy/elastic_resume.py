"""From which checkpoint the founders of an elastic run continue: the newest that any of them has."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.plugins import CheckpointIO
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_parablock.checkpointing.elastic_checkpoints import ElasticEntry, read_elastic, weights_and_entry
from lightning_parablock.checkpointing.payloads import from_bytes, to_bytes
from lightning_parablock.checkpointing.plain import is_remote
from lightning_parablock.federation.collectives import Gathering
from lightning_parablock.strategy.elastic_run import ElasticRun

_WHAT = "the checkpoint from which the run continues"


@dataclass(frozen=True)
class HeldFile:
    """A checkpoint of an elastic run on this site's disk, which has been read.

    Attributes:
        checkpoint: W and the entry.
        entry: What it says of its run.
    """

    checkpoint: dict[str, Any]
    entry: ElasticEntry


def held_checkpoint(files: CheckpointIO, path: str | None) -> HeldFile | None:
    """What a site would continue from; None where it has no such file.

    The same command may name a file that only some sites have.

    Raises:
        ConfigurationError: the file is no checkpoint of an elastic run.
        CheckpointError: it is damaged, or of another version.
    """
    if path is None or not (is_remote(path) or Path(path).is_file()):
        if path is not None:
            rank_zero_info(f"parablock: {path} is not on this site's disk: another founder may have it")
        return None
    checkpoint = read_elastic(files, path, weights_only=None)
    entry = ElasticEntry.of(checkpoint, path)
    return HeldFile(weights_and_entry(checkpoint), entry)


@dataclass(frozen=True)
class ShareOfCheckpoint:
    """How the founders come by the checkpoint on which they have agreed; the same at all of them.

    Attributes:
        source_rank: Number of the first founder that has it.
        source: Its client id.
        is_everywhere: Whether all founders have it.
    """

    source_rank: int
    source: int
    is_everywhere: bool

    @classmethod
    def agreed(cls, ranks: Gathering, run: ElasticRun, held: HeldFile | None) -> ShareOfCheckpoint | None:
        """Agree on the newest checkpoint; None where there is none, and for guests. Collective."""
        is_founder = run.entry.is_founder
        own = (held.entry.round, held.entry.weights_sha256) if held is not None and is_founder else None
        told = ranks.gather_objects(own)
        newest = max((one[0] for one in told if one is not None), default=None)
        if newest is None or not is_founder:
            return None
        source = next(rank for rank, one in enumerate(told) if one is not None and one[0] == newest)
        return cls(source, run.group.clients[source], all(one == told[source] for one in told))

    def load(self, run: ElasticRun, held: HeldFile | None) -> tuple[dict[str, Any], ElasticEntry]:
        """The checkpoint and its entry; collective among the founders where not all of them have it."""
        if self.is_everywhere:
            assert held is not None, "all founders have it"
            return held.checkpoint, held.entry
        is_source = run.client == self.source
        payload = to_bytes(held.checkpoint, _WHAT) if is_source and held is not None else b""
        checkpoint: dict[str, Any] = from_bytes(run.group.hand_out(payload, self.source, _WHAT), _WHAT)
        return checkpoint, ElasticEntry.of(checkpoint, _WHAT)
