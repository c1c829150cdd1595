"""Messages: what is sealed can be opened, what is damaged or misplaced cannot; shards and chunks cover a block."""

from __future__ import annotations

import itertools
import struct
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from lightning_parablock.errors import ProtocolError
from lightning_parablock.settings import Topology
from lightning_parablock.transport import chunks
from lightning_parablock.transport.chunks import (
    HEADER_BYTES,
    SHARD_CHUNKS,
    SHARD_MULTIPLE,
    SMALL_CHUNK_SCALARS,
    Header,
    Kind,
    chunks_of,
    shard_bounds,
)

HEADER = Header(Kind.DELTA, 3, 70_000, 5, 2, 2**33, 4 * 10, weight=17, since_ready_us=2**40, gradient_norm=0.75)
TOPOLOGIES = st.sampled_from(get_args(Topology))
EXAMPLES = settings(max_examples=200, derandomize=True, deadline=None, database=None)


def sealed(header: Header = HEADER) -> Tensor:
    message = torch.empty(HEADER_BYTES + header.length_bytes, dtype=torch.uint8)
    values = torch.arange(-(-header.length_bytes // 4)) / 3
    chunks.payload(message).copy_(values.view(torch.uint8)[: header.length_bytes])
    chunks.seal(message, header)
    return message


def test_a_message_is_a_header_of_64_bytes_and_the_payload() -> None:
    message = sealed()
    assert message.dtype == torch.uint8
    assert message.numel() == HEADER_BYTES + 40 == 64 + 40
    assert torch.equal(chunks.payload(message).view(torch.float32), torch.arange(10) / 3)


def test_what_is_sealed_can_be_opened() -> None:
    assert chunks.unseal(sealed(), HEADER) == HEADER


def test_the_layout_is_the_documented_one() -> None:
    raw = bytes(sealed()[:HEADER_BYTES].tolist())
    fields = [(4, 2), (6, 2), (8, 4), (12, 4), (16, 4), (20, 4), (24, 8), (32, 8), (40, 4), (44, 8)]
    numbers = [int.from_bytes(raw[offset : offset + size], "little") for offset, size in fields]
    assert raw[:4] == b"PBLK"
    assert numbers == [chunks.PROTOCOL_VERSION, 1, 3, 70_000, 5, 2, 2**33, 40, 17, 2**40]
    assert struct.unpack_from("<d", raw, 52) == (0.75,)


def test_weight_and_time_are_the_senders_to_say() -> None:
    expected = replace(HEADER, weight=0, since_ready_us=0)
    opened = chunks.unseal(sealed(), expected)
    assert (opened.weight, opened.since_ready_us) == (17, 2**40)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": Kind.COMMIT},
        {"generation": 4},
        {"round": 70_001},
        {"block": 6},
        {"sender": 1},
        {"first": 0},
        {"length_bytes": 44},
    ],
    ids=lambda change: next(iter(change)),
)
def test_a_message_for_another_place_is_refused_and_both_are_named(change: dict[str, int]) -> None:
    other = replace(HEADER, **change)
    with pytest.raises(ProtocolError) as caught:
        chunks.unseal(sealed(), other)
    text = str(caught.value)
    assert f"expected {other.describe()}" in text
    assert f"received {HEADER.describe()}" in text


def test_every_damaged_bit_of_the_header_is_noticed() -> None:
    whole = sealed()
    for byte, bit in itertools.product(range(HEADER_BYTES), range(8)):
        damaged = whole.clone()
        damaged[byte] ^= 1 << bit
        with pytest.raises(ProtocolError):
            chunks.unseal(damaged, HEADER)


@pytest.mark.parametrize("length_bytes", [40, 41, 47, 7, 1])
def test_every_damaged_bit_of_the_payload_is_noticed(length_bytes: int) -> None:
    header = replace(HEADER, length_bytes=length_bytes)
    whole = sealed(header)
    assert chunks.unseal(whole, header) == header
    for byte, bit in itertools.product(range(HEADER_BYTES, whole.numel()), range(8)):
        damaged = whole.clone()
        damaged[byte] ^= 1 << bit
        with pytest.raises(ProtocolError, match="checksum is wrong"):
            chunks.unseal(damaged, header)


def test_another_protocol_version_is_named() -> None:
    message = sealed()
    message[4] = chunks.PROTOCOL_VERSION + 1
    with pytest.raises(ProtocolError, match=rf"version {chunks.PROTOCOL_VERSION + 1}, this side speaks version"):
        chunks.unseal(message, HEADER)


def test_an_unknown_kind_is_a_protocol_error() -> None:
    with pytest.raises(ProtocolError, match="unknown kind 7"):
        chunks.unseal(sealed(replace(HEADER, kind=7)), HEADER)  # type: ignore[arg-type]


def test_a_buffer_that_nothing_was_written_into_is_refused() -> None:
    with pytest.raises(ProtocolError):
        chunks.unseal(torch.zeros(HEADER_BYTES + 40, dtype=torch.uint8), HEADER)


# shards and chunks


@EXAMPLES
@given(st.integers(1, 2**34), st.integers(1, 64), TOPOLOGIES)
def test_shards_cover_a_block_without_overlap(numel: int, n_ranks: int, topology: Topology) -> None:
    shards = shard_bounds(numel, n_ranks, topology)
    assert len(shards) == n_ranks
    assert (shards[0].start, shards[-1].stop) == (0, numel)
    assert all(one.stop == other.start for one, other in itertools.pairwise(shards))
    assert all(0 <= shard.start <= shard.stop <= numel for shard in shards)


@EXAMPLES
@given(st.integers(1, 2**34), st.integers(1, 64))
def test_shards_are_equal_to_one_unit_and_cut_at_its_multiples(numel: int, n_ranks: int) -> None:
    shards = shard_bounds(numel, n_ranks, "sharded")
    assert all(shard.start % SHARD_MULTIPLE == 0 or shard.start == numel for shard in shards)
    sizes = [shard.stop - shard.start for shard in shards]
    assert max(sizes) - min(sizes) < 2 * SHARD_MULTIPLE


@EXAMPLES
@given(st.integers(1, 2**34), st.integers(1, 64))
def test_the_star_is_served_by_the_first_rank(numel: int, n_ranks: int) -> None:
    first, *others = shard_bounds(numel, n_ranks, "star")
    assert first == slice(0, numel)
    assert all(shard.start == shard.stop for shard in others)


@EXAMPLES
@given(st.integers(0, 2**20), st.integers(0, 2**20), st.integers(1, 64), st.sampled_from(get_args(Topology)))
def test_chunks_cover_their_shard_in_order(start: int, length: int, chunk_pages: int, topology: Topology) -> None:
    chunk_bytes = 4096 * chunk_pages
    parts = list(chunks_of(slice(start, start + length), chunk_bytes, topology))
    assert all(one.stop == other.start for one, other in itertools.pairwise(parts))
    assert all(0 < part.stop - part.start <= chunk_bytes // 4 for part in parts)
    assert bool(parts) == bool(length)
    if parts:
        assert (parts[0].start, parts[-1].stop) == (start, start + length)
        assert parts[0].stop - parts[0].start == min(length, SHARD_MULTIPLE)


@EXAMPLES
@given(st.integers(1, 2**24), st.sampled_from(get_args(Topology)))
def test_a_shard_has_many_chunks_or_small_ones(length: int, topology: Topology) -> None:
    first, *others = chunks_of(slice(0, length), 1 << 20, topology)
    assert first.stop <= SHARD_MULTIPLE
    many = SHARD_CHUNKS[topology] - 1
    assert len(others) >= many or all(part.stop - part.start <= SMALL_CHUNK_SCALARS for part in others)


@pytest.mark.parametrize("topology", get_args(Topology))
def test_a_block_over_2_gb_is_planned_without_allocating_it(topology: Topology) -> None:
    numel, chunk_bytes = 3_000_000_001, 1 << 20  # 12 GB
    shards = shard_bounds(numel, 3, topology)
    lengths = [part.stop - part.start for shard in shards for part in chunks_of(shard, chunk_bytes, topology)]
    assert sum(lengths) == numel
    assert max(lengths) == chunk_bytes // 4
    last = Header(Kind.DELTA, 0, 0, 0, 0, numel - 5, 20)
    assert last.first > 2**31
    assert chunks.unseal(sealed(last), last) == last
