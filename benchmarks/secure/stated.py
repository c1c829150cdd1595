"""Bytes of one exchange as docs/method.md states them, counted here without the package's own plans."""

from __future__ import annotations

from collections.abc import Sequence

from lightning_parablock.settings import Topology
from lightning_parablock.transport.chunks import HEADER_BYTES, chunks_of, shard_bounds

RECORD_SCALARS = 1024
RECORD_FACT_BYTES = 4
MESSAGE_FACT_BYTES = 8
WORD_BYTES = 4


def values_bytes(scalars: int, bytes_per_value: int) -> int:
    """Of the whole numbers in a message, filled up to words of four bytes."""
    return WORD_BYTES * -(-bytes_per_value * scalars // WORD_BYTES)


def facts_bytes(scalars: int) -> int:
    """Of what travels beside the numbers of a message: four bytes per record, and eight."""
    return RECORD_FACT_BYTES * -(-scalars // RECORD_SCALARS) + MESSAGE_FACT_BYTES


def shard_bytes(parts: Sequence[int], bytes_per_value: int, *, is_first: bool) -> int:
    """Of all messages of one shard in one direction; a block's first exchange has twice as many messages."""
    headers = HEADER_BYTES * len(parts) * (2 if is_first else 1)
    return headers + sum(values_bytes(part, bytes_per_value) + facts_bytes(part) for part in parts)


def secure_bytes(
    numel: int, sites: int, topology: Topology, chunk_bytes: int, bytes_per_value: int, *, is_first: bool
) -> list[tuple[int, int]]:
    """(upload, download) of each site in one exchange of a block, message headers included.

    Contributions and commits are equally long. A site sends its contribution to every other server, and its own
    shard's commit to every other site; it receives the same the other way round.

    Args:
        numel: Scalars of the block.
        sites: Number of sites, with one client each.
        topology: "star" or "sharded".
        chunk_bytes: The strategy's option.
        bytes_per_value: B.
        is_first: Whether it is the block's first exchange.
    """
    shards = [
        shard_bytes(
            [part.stop - part.start for part in chunks_of(shard, chunk_bytes, topology)],
            bytes_per_value,
            is_first=is_first,
        )
        for shard in shard_bounds(numel, sites, topology)
    ]
    whole = sum(shards)
    return [(whole - own + (sites - 1) * own, whole - own + (sites - 1) * own) for own in shards]
