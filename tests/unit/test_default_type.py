"""Lightning's bf16-true changes torch's default type for all threads, so nothing may be allocated without a type."""

from __future__ import annotations

import pytest
import torch

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.feedback import Coder, Residuals
from lightning_parablock.server.aggregation import MeanAggregator, Received
from lightning_parablock.settings import BF16, Compression, Int4, Int8, NoCompression, ServerNesterov, Sparse, TopK
from tests.unit.test_server import ServerShard, vectors


@pytest.mark.parametrize("compression", [NoCompression(), BF16(), Int8(), Int4(), TopK(), Sparse(decay=0.5)], ids=str)
def test_an_exchange_computes_in_float32_whatever_the_default_is(compression: Compression) -> None:
    def exchange() -> list[torch.Tensor]:
        coder, residuals = Coder(compression), Residuals()
        server = ServerShard(ServerNesterov(), [start.clone()], compression=compression)
        payload = torch.empty(codec_of(compression).payload_bytes(40), dtype=torch.uint8)
        residual = residuals.begin(0, 0, 0, 40) if compression.is_lossy else None
        received = Received(1, 0.0, lambda: coder.as_received(delta, residual, slice(0, 40)))
        server.begin(0, 0)
        server.commit(0, 0, slice(0, 40), MeanAggregator().aggregate((0, 0), {0: received}, slice(0, 40)).mean, payload)
        return [server.values[0], payload, *(piece.values for piece in server.state())]

    start, delta = vectors(2, seed=3)
    expected = exchange()
    torch.set_default_dtype(torch.bfloat16)
    try:
        actual = exchange()
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(one, other) for one, other in zip(actual, expected, strict=True))
