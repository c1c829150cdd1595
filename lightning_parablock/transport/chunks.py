"""Messages: a block's shards, their chunks, and the header that every chunk carries.

One message is one chunk: a 64-byte header, then the payload. Little-endian header layout::

    offset bytes  field
     0      4     magic "PBLK"
     4      2     protocol version
     6      2     kind: 1 delta, 2 commit
     8      4     generation of the membership
    12      4     round
    16      4     block index
    20      4     sender: client id of a delta, rank of a commit's server
    24      8     first scalar of the chunk in the block
    32      8     payload length in bytes, as it was encoded
    40      4     weight n_i of a delta, 0 in a commit
    44      8     microseconds since the server heard from the slowest client, 0 in a delta
    52      8     gradient norm: of the client in a delta, the mean in a commit, NaN where no client has one; 0 where no
                  block order asks for it
    60      4     checksum of the header up to here and of the payload
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from enum import IntEnum

import torch
from torch import Tensor

from lightning_parablock.codecs.compression import RECORD_SCALARS
from lightning_parablock.errors import ProtocolError
from lightning_parablock.settings import Topology

PROTOCOL_VERSION = 3
HEADER_BYTES = 64
WINDOW = 4
"""Receives posted ahead per sender and kind. This bounds the memory for messages, whatever the block's size, and how
far one sender can be ahead of another whose part of the same sum is still missing."""
SEND_WINDOW = 2
"""Chunks of one kind that wait to leave for one rank. Fewer than WINDOW: a posted receive is announced to its sender on
the connection of this side's own chunks, behind those that wait, and until it arrives the other direction is idle."""
SHARD_MULTIPLE = RECORD_SCALARS
"""Shards are cut at multiples of this many scalars from the block's start, whatever the number of ranks: no codec's
record is cut."""
SHARD_CHUNKS: dict[Topology, int] = {"sharded": 8, "star": 16}
"""Least number of chunks per shard, unless they become too small: no commit can leave before the first chunk's deltas
have arrived, and after the last deltas the last chunk's commit has yet to travel. In a star one server sends it to all
ranks over one link."""
SMALL_CHUNK_SCALARS = 16 * SHARD_MULTIPLE
"""Chunks are not made smaller than this: each message has a cost of its own."""

_MAGIC = b"PBLK"
_LAYOUT = struct.Struct("<4sHHIIIIQQIQd")
_CHECKSUM_OFFSET = _LAYOUT.size
_SCALAR_BYTES = 4


class Kind(IntEnum):
    """The content of a message; also its tag on the wire."""

    DELTA = 1
    COMMIT = 2


@dataclass(frozen=True)
class Header:
    """The fields of one message that must agree on both sides, see the module's layout."""

    kind: Kind
    generation: int
    round: int
    block: int
    sender: int
    first: int
    length_bytes: int
    weight: int = 0
    since_ready_us: int = 0
    gradient_norm: float = 0.0

    def describe(self) -> str:
        """For error messages."""
        what = f"delta of client {self.sender}" if self.kind == Kind.DELTA else f"commit of rank {self.sender}"
        return f"{what}, round {self.round}, block {self.block}, scalar {self.first}, {self.length_bytes} bytes"


def shard_bounds(numel: int, n_ranks: int, topology: Topology) -> list[slice]:
    """The slice of a block of ``numel`` scalars that each rank serves; together they cover it, some may be empty."""
    if topology == "star":
        return [slice(0, numel)] + [slice(numel, numel)] * (n_ranks - 1)
    units = -(-numel // SHARD_MULTIPLE)
    cuts = [min(numel, SHARD_MULTIPLE * (units * rank // n_ranks)) for rank in range(n_ranks)]
    return [slice(low, high) for low, high in zip(cuts, [*cuts[1:], numel], strict=True)]


def chunks_of(shard: slice, chunk_bytes: int, topology: Topology) -> Iterator[slice]:
    """Cut a shard into chunks of at most ``chunk_bytes`` as float32, before compression; an empty shard has none.

    The first chunk is small: its arrival tells when the sender began, untouched by how long a full chunk travels.
    """
    share = SHARD_MULTIPLE * -(-(shard.stop - shard.start) // (SHARD_CHUNKS[topology] * SHARD_MULTIPLE))
    step = min(chunk_bytes // _SCALAR_BYTES, max(SMALL_CHUNK_SCALARS, share))
    first = min(shard.start + SHARD_MULTIPLE, shard.stop)
    if first > shard.start:
        yield slice(shard.start, first)
    for low in range(first, shard.stop, step):
        yield slice(low, min(low + step, shard.stop))


def payload(message: Tensor) -> Tensor:
    """The bytes of a message behind its header: a uint8 view, 8-byte aligned."""
    return message[HEADER_BYTES:]


def seal(message: Tensor, header: Header) -> None:
    """Write the header of a message whose payload is in place."""
    fields = _LAYOUT.pack(_MAGIC, PROTOCOL_VERSION, *astuple(header))
    checksum = _checksum(message, fields)
    raw = fields + struct.pack("<I", checksum)
    message[:HEADER_BYTES] = torch.frombuffer(bytearray(raw), dtype=torch.uint8)


def unseal(message: Tensor, expected: Header) -> Header:
    """Check a received message against the expected header; the last three fields are set by the sender.

    Raises:
        ProtocolError: protocol version, round, block, sender or position differ, or the checksum is wrong.
    """
    raw = message[:HEADER_BYTES].cpu().numpy().tobytes()
    magic, version, *fields = _LAYOUT.unpack_from(raw)
    if magic != _MAGIC or version != PROTOCOL_VERSION:
        raise ProtocolError(
            f"expected {expected.describe()}, received a message of protocol {magic!r} version {version}, this side "
            f"speaks version {PROTOCOL_VERSION}; install the same lightning-parablock everywhere"
        )
    (checksum,) = struct.unpack_from("<I", raw, _CHECKSUM_OFFSET)
    if checksum != _checksum(message, raw[:_CHECKSUM_OFFSET]):
        raise ProtocolError(f"expected {expected.describe()}: the checksum is wrong, the bytes were damaged on the way")
    if fields[0] not in list(Kind):
        raise ProtocolError(f"expected {expected.describe()}, received a message of unknown kind {fields[0]}")
    header = Header(Kind(fields[0]), *fields[1:])
    if astuple(header)[:-3] != astuple(expected)[:-3]:
        raise ProtocolError(f"expected {expected.describe()} of generation {expected.generation}, "
                            f"received {header.describe()} of generation {header.generation}")  # fmt: skip
    return header


def _checksum(message: Tensor, fields: bytes) -> int:
    """CRC-32 of the header's fields, the payload's last bytes and the sum of its 64-bit words.

    Every damaged bit changes the sum, and TCP has checks of its own. A CRC of every byte would cost as much processor
    time as sending them.
    """
    body = payload(message)
    whole = body.numel() // 8 * 8
    total = int(body[:whole].view(torch.int64).sum().item()) if whole else 0
    tail = body[whole:].cpu().numpy().tobytes()
    return zlib.crc32(fields + tail + total.to_bytes(8, "little", signed=True))
