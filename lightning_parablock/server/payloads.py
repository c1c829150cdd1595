"""How many bytes a part of a block takes on the wire, each way, by the settings alone: for plans."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.compression import Compression
from lightning_parablock.server.aggregations import Aggregation, SecureAggregation
from lightning_parablock.server.optimizers import ServerOptimizer, ServerSGD
from lightning_parablock.server.secure.layout import layout_of


@dataclass(frozen=True)
class Payloads:
    """Lengths of payloads where the parameters are float32, and a block's scale is known.

    Attributes:
        aggregation: How deltas become their mean.
        compression: The codec.
        optimizer: The server's.
    """

    aggregation: Aggregation
    compression: Compression
    optimizer: ServerOptimizer

    def contribution_bytes(self, scalars: int) -> int:
        """Of a part of a delta, or of a site's sum of deltas."""
        if isinstance(self.aggregation, SecureAggregation):
            return layout_of(self.aggregation.bytes_per_value * scalars, scalars, has_facts=True).size_bytes
        return codec_of(self.compression).payload_bytes(scalars)

    def commit_bytes(self, scalars: int) -> int:
        """Of a part of a commit."""
        if not isinstance(self.aggregation, SecureAggregation):
            return codec_of(self.compression).payload_bytes(scalars)
        if isinstance(self.optimizer, ServerSGD) and not self.compression.is_lossy:
            return self.contribution_bytes(scalars)
        return layout_of(codec_of(self.compression).payload_bytes(scalars), scalars, has_facts=True).size_bytes
