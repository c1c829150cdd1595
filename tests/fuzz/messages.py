"""What ranks send each other: payloads, chunks of blocks, encoded values, signs of life, introductions."""

from __future__ import annotations

import json
import struct
import zlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.compression import BF16, Compression, Int4, Int8, Sparse, TopK
from lightning_parablock.errors import ProtocolError
from lightning_parablock.meeting import ways
from lightning_parablock.meeting.introductions import Introduction, Meeting, is_dead, this_system
from lightning_parablock.membership.signs import SIGN_BYTES, Call, Progress, Sign, Word, digest_of
from lightning_parablock.system.payloads import from_bytes, to_bytes
from lightning_parablock.transport import chunks
from lightning_parablock.transport.chunks import HEADER_BYTES, Header, Kind
from tests.fuzz.target import Target, message, said_and_body

_INTRODUCTION = Introduction(0, 2, "a", "host", 17)
_VALUES: tuple[Any, ...] = (
    [1, 2.5, 1j, True, "text", b"bytes", b""],
    {"a": (1, {2, 3}), 4: torch.float16, "size": torch.Size([2, 3]), "path": Path("a/b")},
    [np.float32(0.1), np.arange(3)],
    [_INTRODUCTION, torch.arange(4, dtype=torch.float32), (*(torch.arange(6).view(2, 3).t(),) * 2, "long text " * 10)],
    {1 << 70: float("nan"), "array": np.zeros((2, 3), order="F"), "own": bytearray(3), "device": torch.device("cpu")},
)
_HEADER = Header(Kind.DELTA, 3, 70, 5, 2, 1024, 40, weight=17, gradient_norm=0.75)
_SCALARS = 1500


def _buffer(data: bytes, size_bytes: int) -> Tensor:
    """What has arrived in a buffer of a fixed size."""
    return torch.frombuffer(bytearray(data[:size_bytes].ljust(size_bytes, b"\0")), dtype=torch.uint8)


# --- payloads ---------------------------------------------------------------------------------------------------------


def _said_in(payload: bytes) -> bytes:
    """The JSON of a payload, and the bytes beside it."""
    (length,) = struct.unpack_from("<Q", payload, 8)
    return payload[16 : 16 + length] + b"\n" + payload[16 + length :]


def _read_said(data: bytes) -> object:
    """A payload whose checksum and length are right."""
    said, beside = said_and_body(data)
    rest = struct.pack("<Q", len(said)) + said + beside
    return from_bytes(b"PBv2" + struct.pack("<I", zlib.crc32(rest)) + rest, "it")


# --- chunks and codecs ------------------------------------------------------------------------------------------------


def _sealed() -> bytes:
    sealed = torch.arange(HEADER_BYTES + _HEADER.length_bytes, dtype=torch.uint8)
    chunks.seal(sealed, _HEADER)
    return sealed.numpy().tobytes()


def _unseal(data: bytes) -> object:
    return chunks.unseal(_buffer(data, HEADER_BYTES + _HEADER.length_bytes), _HEADER)


def _unseal_summed(data: bytes) -> object:
    """A chunk whose checksum is right, whatever its fields are."""
    arrived = _buffer(data, HEADER_BYTES + _HEADER.length_bytes)
    fields = arrived[: chunks._CHECKSUM_OFFSET].numpy().tobytes()
    arrived[chunks._CHECKSUM_OFFSET : HEADER_BYTES] = _buffer(struct.pack("<I", chunks._checksum(arrived, fields)), 4)
    return chunks.unseal(arrived, _HEADER)


def _codec(compression: Compression) -> Target:
    codec = codec_of(compression)
    n_bytes = codec.payload_bytes(_SCALARS)
    encoded = torch.zeros(n_bytes, dtype=torch.uint8)
    codec.encode(torch.linspace(-1.0, 2.0, _SCALARS), encoded)

    def decode(data: bytes) -> object:
        into = torch.empty(_SCALARS)
        codec.decode(_buffer(data, n_bytes), into)
        return into

    return Target(f"codec-{type(compression).__name__.lower()}", decode, (ProtocolError,), (encoded.numpy().tobytes(),))


# --- the meeting ------------------------------------------------------------------------------------------------------


def _read_seat(data: bytes) -> object:
    return is_dead(f"{data.decode(errors='replace')} ({this_system()})")


def _read_addresses(data: bytes) -> object:
    try:
        said = json.loads(data)
    except (ValueError, RecursionError):
        return None  # refused where it is read
    meeting = Meeting((_INTRODUCTION, _INTRODUCTION), 0, "run")
    return [ways._order(*one) for one in ways._listeners(meeting, 1, said)]


_WORDS = (
    Word(Sign.ALIVE, Progress(5, 4, 3, 20, 1)),
    Word(Sign.ARRIVED, Progress(), Call(3, digest_of("sum"), "sum")),
)

TARGETS = (
    Target("payload", lambda data: from_bytes(data, "it"), (ProtocolError,), tuple(to_bytes(v, "it") for v in _VALUES)),
    Target("payload-said", _read_said, (ProtocolError,), tuple(_said_in(to_bytes(v, "it")) for v in _VALUES)),
    Target("chunk", _unseal, (ProtocolError,), (_sealed(),)),
    Target("chunk-summed", _unseal_summed, (ProtocolError,), (_sealed(),)),
    *(_codec(one) for one in (BF16(), Int8(), Int4(), TopK(0.05), Sparse())),
    Target(
        "sign",
        lambda data: Word.unpack(_buffer(data, SIGN_BYTES)),
        (ProtocolError,),
        tuple(word.pack().numpy().tobytes() for word in _WORDS),
    ),
    Target(
        "introduction",
        lambda data: Introduction.from_json(data, "it"),
        (ProtocolError,),
        (message(asdict(_INTRODUCTION)), message(asdict(Introduction(-1, 3, None, "h", 1, "job", "system")))),
    ),
    Target("seat", _read_seat, (), (b"pid 17 on host", b"pid 1 on host")),
    Target("addresses", _read_addresses, (ProtocolError,), (message([["127.0.0.1", 80], ["fe80::1%eth0", 1234]]),)),
)
