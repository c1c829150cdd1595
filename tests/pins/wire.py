"""Bytes on the wire. What is imported here may move within the package; the bytes may not change."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from lightning_parablock import BF16, Int4, Int8, NoCompression, Sparse, TopK
from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.transport.chunks import HEADER_BYTES, Header, Kind, chunks_of, payload, seal, shard_bounds

SCALARS = 2 * 1024 + 300
COMPRESSIONS = {
    "none": NoCompression(),
    "bf16": BF16(),
    "int8": Int8(),
    "int8 of 64": Int8(group=64),
    "int4": Int4(),
    "int4 of 32": Int4(group=32),
    "topk": TopK(),
    "topk of a quarter": TopK(keep=1 / 4),
    "sparse": Sparse(),
    "sparse of 16": Sparse(group=16),
    "sparse of 64": Sparse(group=64),
}


def values() -> Tensor:
    """Fixed values of both signs and many magnitudes: whole numbers times powers of two, which are exact everywhere."""
    places = torch.arange(SCALARS)
    numbers = (1 + (places * 389) % 2351).float()
    powers = torch.tensor([2.0 ** -(4 + index) for index in range(7)])
    return numbers * torch.tensor([-1.0, 1.0, 1.0])[places % 3] * powers[places % 7]


def messages() -> dict[str, dict[str, str]]:
    """For each codec the header in hexadecimal, and the checksum and length of a whole message."""
    found: dict[str, dict[str, str]] = {}
    for name, compression in COMPRESSIONS.items():
        codec = codec_of(compression)
        length = codec.payload_bytes(SCALARS)
        message = torch.zeros(HEADER_BYTES + length, dtype=torch.uint8)
        codec.encode(values(), payload(message))
        header = Header(Kind.DELTA, 3, 17, 2, 5, 4096, length, weight=24, since_ready_us=0, gradient_norm=0.625)
        seal(message, header)
        decoded = torch.empty(SCALARS)
        codec.decode(payload(message), decoded)
        found[name] = {
            "header": _bytes(message[:HEADER_BYTES]).hex(),
            "payload bytes": str(length),
            "message sha256": hashlib.sha256(_bytes(message)).hexdigest(),
            "decoded sha256": hashlib.sha256(_bytes(decoded.view(torch.uint8))).hexdigest(),
        }
    return found


def commit_header() -> str:
    """The header of a commit with another value in every field, in hexadecimal."""
    message = torch.zeros(HEADER_BYTES + 16, dtype=torch.uint8)
    seal(message, Header(Kind.COMMIT, 1, 2**31, 7, 1, 2**33, 16, since_ready_us=123_456, gradient_norm=float("nan")))
    return _bytes(message[:HEADER_BYTES]).hex()


def cuts() -> dict[str, list[list[int]]]:
    """Where blocks are cut into shards and these into chunks."""
    found: dict[str, list[list[int]]] = {}
    for topology in ("sharded", "star"):
        for numel in (1, 5_000, 3_000_000):
            shards = shard_bounds(numel, 3, topology)
            found[f"shards of {numel}, {topology}"] = [[cut.start, cut.stop] for cut in shards]
            chunks = chunks_of(shards[0], 1 << 20, topology)
            found[f"chunks of {numel}, {topology}"] = [[cut.start, cut.stop] for cut in chunks]
    return found


def _bytes(tensor: Tensor) -> bytes:
    return tensor.contiguous().numpy().tobytes()
