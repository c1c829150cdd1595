"""The settings of a run: one frozen record, checked once, and the choices that it is made of."""

from lightning_parablock.checks import nearest
from lightning_parablock.codecs.compression import (
    BF16,
    COMPRESSIONS,
    RECORD_SCALARS,
    Compression,
    Int4,
    Int8,
    LowRank,
    NoCompression,
    Sparse,
    TopK,
    resolve_compression,
)
from lightning_parablock.server.aggregations import (
    AGGREGATIONS,
    Aggregation,
    MeanAggregation,
    SecureAggregation,
    resolve_aggregation,
)
from lightning_parablock.server.optimizers import (
    SERVER_OPTIMIZERS,
    Decay,
    ServerAdam,
    ServerNesterov,
    ServerOptimizer,
    ServerSGD,
    ServerYogi,
    resolve_server_optimizer,
)
from lightning_parablock.settings.blocks import AUTO, BlockOrder, BlocksSpec, Unmatched, resolve_blocks
from lightning_parablock.settings.clients import Availability, CohortSampling
from lightning_parablock.settings.exchange import InFlightValue, Topology, Weighting
from lightning_parablock.settings.fit import MissingClientState, UnevenClients
from lightning_parablock.settings.local import BlockOptimizerState, Buffers, NonfiniteDelta
from lightning_parablock.settings.record import OWN_SETTINGS, MethodOptions, Settings, option_word
from lightning_parablock.settings.rounds import MAX_AUTO_STEPS, resolve_steps

__all__ = [
    "AGGREGATIONS",
    "AUTO",
    "BF16",
    "COMPRESSIONS",
    "MAX_AUTO_STEPS",
    "OWN_SETTINGS",
    "RECORD_SCALARS",
    "SERVER_OPTIMIZERS",
    "Aggregation",
    "Availability",
    "BlockOptimizerState",
    "BlockOrder",
    "BlocksSpec",
    "Buffers",
    "CohortSampling",
    "Compression",
    "Decay",
    "InFlightValue",
    "Int4",
    "Int8",
    "LowRank",
    "MeanAggregation",
    "MethodOptions",
    "MissingClientState",
    "NoCompression",
    "NonfiniteDelta",
    "SecureAggregation",
    "ServerAdam",
    "ServerNesterov",
    "ServerOptimizer",
    "ServerSGD",
    "ServerYogi",
    "Settings",
    "Sparse",
    "TopK",
    "Topology",
    "UnevenClients",
    "Unmatched",
    "Weighting",
    "nearest",
    "option_word",
    "resolve_aggregation",
    "resolve_blocks",
    "resolve_compression",
    "resolve_server_optimizer",
    "resolve_steps",
]
