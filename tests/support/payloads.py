"""Send a vector through a codec, as a message does."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_parablock.codecs.codec import Codec
from lightning_parablock.settings import BF16, Compression, Int4, Int8, LowRank, NoCompression, Sparse, TopK

EVERY_COMPRESSION: list[Compression] = [
    NoCompression(),
    BF16(),
    Int8(),
    Int8(4),
    Int8(1024),
    Int4(),
    Int4(4),
    Int4(1024),
    TopK(),
    TopK(1.0),
    TopK(1e-6),
    Sparse(),
    Sparse(16),
    Sparse(64),
]
HEADER_BYTES, GUARD = 4, 0xA5  # a message's header is a multiple of 4 bytes


def encoded(codec: Codec, values: Tensor) -> Tensor:
    """The payload, written behind a header and before somebody else's bytes, neither of which may change."""
    length = codec.payload_bytes(values.numel())
    message = torch.full((HEADER_BYTES + length + 8,), GUARD, dtype=torch.uint8)
    before = values.clone()
    codec.encode(values, message[HEADER_BYTES : HEADER_BYTES + length])
    assert torch.equal(values.view(torch.int32), before.view(torch.int32))
    assert (message[:HEADER_BYTES] == GUARD).all() and (message[HEADER_BYTES + length :] == GUARD).all()
    return message[HEADER_BYTES : HEADER_BYTES + length]


def decoded(codec: Codec, payload: Tensor, scalars: int) -> Tensor:
    """What arrives, written over other numbers."""
    into = torch.full((scalars + 2,), 123.0)
    codec.decode(payload, into[1:-1])
    assert into[0] == into[-1] == 123.0
    return into[1:-1].clone()


def arriving(codec: Codec, values: Tensor) -> Tensor:
    """Both, one after the other."""
    return decoded(codec, encoded(codec, values), values.numel())


def oracle_words(compression: Compression) -> dict[str, Any]:
    """The oracle's words for a compression, but for the decay of what it leaves out."""
    match compression:
        case Int8(group):
            return {"compression": "int8", "group": group}
        case Int4(group):
            return {"compression": "int4", "group": group}
        case TopK(keep):
            return {"compression": "topk", "keep": keep}
        case Sparse(group):
            return {"compression": "sparse", "group": group}
        case LowRank(rank):
            return {"rank": rank}
        case _:
            return {"compression": "bf16" if isinstance(compression, BF16) else "none"}
