"""Values that ranks and sites send each other beside the exchange: bytes and back, without running code of a peer.

What travels are tensors, plain values, paths, plain containers of them, and records of this package (frozen
dataclasses that check nothing, and named tuples), which hold such values themselves. Anything else is refused where it
is to be sent, and cannot be expressed where it arrives: a payload is JSON, and the bytes of texts and tensors behind
it. No part of it takes more memory than a fixed multiple of the bytes that have arrived.

=============  ====================================================
bytes          content
=============  ====================================================
4              ``PBv2``
4              CRC-32 of all that follows, little-endian
8              length of the JSON, little-endian
as many        the JSON, see :mod:`~lightning_parablock.system.value_writer`
all others     the bytes beside it
=============  ====================================================
"""

from __future__ import annotations

import json
import struct
import zlib
from typing import Any

import torch

from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.system.bounded_json import MOST_JSON_BYTES, MOST_VALUES, most_values, parsed
from lightning_parablock.system.reading import reading
from lightning_parablock.system.value_reader import ValueReader
from lightning_parablock.system.value_writer import ForeignError, ValueWriter

_MAGIC = b"PBv2"
_CHECKSUM = struct.Struct("<4sI")
_LENGTH = struct.Struct("<Q")
_HEAD_BYTES = _CHECKSUM.size + _LENGTH.size


def to_bytes(value: Any, what: str) -> bytes:
    """The bytes of a value.

    Args:
        value: Tensors, plain values and records of this package.
        what: Names it in messages.

    Raises:
        ConfigurationError: it holds something else; names what.
    """
    writer = ValueWriter()
    try:
        text = _json(writer.written(value))
    except ForeignError as error:
        raise ConfigurationError(
            f"{what}: {'.'.join(error.keys) or 'it'} {error.why}; ranks and sites send each other tensors and plain "
            "values alone (numbers, texts, paths, lists, dicts), so that none of them can make another run code"
        ) from error
    length = _LENGTH.pack(len(text))
    checksum = zlib.crc32(text, zlib.crc32(length))
    for part in writer.parts:
        checksum = zlib.crc32(part, checksum)
    return b"".join((_CHECKSUM.pack(_MAGIC, checksum), length, text, *writer.parts))


def from_bytes(data: bytes | bytearray | memoryview, what: str, device: torch.device | str = "cpu") -> Any:
    """The value that :func:`to_bytes` was given.

    Args:
        data: Its bytes; they are not kept.
        what: Names it in messages.
        device: Where tensors come that were not in host memory; the others stay there.

    Raises:
        ProtocolError: the bytes are something else.
    """
    with reading(what):
        text, beside = _parts_of(memoryview(data).cast("B"))
        return ValueReader(beside, torch.device(device)).whole(parsed(text))


def _json(said: Any) -> bytes:
    text = json.dumps(said, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    encoded = text.encode("utf-8", "surrogatepass")
    if len(encoded) > MOST_JSON_BYTES or most_values(encoded) > MOST_VALUES:
        raise ForeignError(f"has more than {MOST_VALUES} values; send many numbers as a tensor")
    return encoded


def _parts_of(data: memoryview) -> tuple[memoryview, memoryview]:
    """The JSON, and the bytes beside it."""
    if data.nbytes < _HEAD_BYTES or bytes(data[:4]) != _MAGIC:
        raise ProtocolError("a peer sent what is no value of this version; install the same one at every site")
    (_, checksum), (length,) = _CHECKSUM.unpack_from(data), _LENGTH.unpack_from(data, _CHECKSUM.size)
    if zlib.crc32(data[_CHECKSUM.size :]) != checksum:
        raise ProtocolError("a peer sent a value whose checksum is wrong")
    if length > min(MOST_JSON_BYTES, data.nbytes - _HEAD_BYTES):
        raise ProtocolError(f"a peer sent a value of {data.nbytes} bytes that states {length} bytes of JSON")
    return data[_HEAD_BYTES : _HEAD_BYTES + length], data[_HEAD_BYTES + length :]
