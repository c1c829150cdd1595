"""The options that say what clients send, what the server does with it, and what comes back."""

from __future__ import annotations

from typing import Literal, cast

from lightning_parablock.checks import check_choice
from lightning_parablock.codecs.compression import COMPRESSIONS, Compression, resolve_compression
from lightning_parablock.options import OptionGroup, option, record
from lightning_parablock.server.aggregations import Aggregation, resolve_aggregation
from lightning_parablock.server.optimizers import ServerOptimizer, resolve_server_optimizer
from lightning_parablock.settings.blocks import AUTO

# One Literal: messages of the command line list the words of one alone.
CompressionChoice = Literal["none", "bf16", "int8", "int4", "topk", "sparse", "low_rank", "auto"]
InFlightValue = Literal["local", "anchor"]
Topology = Literal["sharded", "star"]
Weighting = Literal["uniform", "samples"]


# The record that knows what is open until round 0 resolves "auto".
def _compression_or_auto(given: CompressionChoice | Compression) -> Compression:
    if isinstance(given, str):
        check_choice("compression", given, (*COMPRESSIONS, AUTO))
    return cast(Compression, given) if given == AUTO else resolve_compression(given)


@record
class ExchangeOptions(OptionGroup):
    """The exchange and the server."""

    in_flight_value: InFlightValue = option(
        default="local",
        help='Value of a block while its delta is in flight: "local" or "anchor". "local" is the committed value plus '
        'the client\'s own deltas in flight; "anchor" is the committed value alone.',
    )
    server_optimizer: ServerOptimizer = option(
        default="sgd",
        converter=resolve_server_optimizer,
        help='What the server does with the mean delta: "sgd" (federated averaging), "nesterov", "adam", "yogi", or '
        "an object. The objects ServerSGD, ServerNesterov, ServerAdam and ServerYogi have their own settings, among "
        "them a schedule of the server's learning rate.",
    )
    weighting: Weighting = option(
        default="uniform",
        help='Weights of the clients in the mean delta: "uniform" or "samples". "samples" is the number of samples '
        "that the client trained on in the round: the first dimension of the tensors in its batches, or what a method "
        "parablock_batch_size(batch) of the LightningModule returns.",
    )
    topology: Topology = option(
        default="sharded",
        kind="path",
        help='Where the server runs: "sharded" or "star". With "sharded" every client serves an equal part of each '
        'block; with "star" the first client serves everything.',
    )
    compression: Compression = option(
        default="none",
        converter=_compression_or_auto,
        help='Compression of deltas and commits on the wire: "none", "bf16", "int8", "int4", "topk", "sparse", '
        '"low_rank", "auto", or an object. "none" sends float32; "bf16" rounds to bfloat16 (2 times fewer bytes); '
        '"int8" sends one byte per value and one step size per 256 values (3.97 times); "int4" half a byte per value '
        'and one step size per 64 (7.5 times); "topk" the 64 largest of every 1024 values (16 times); "sparse" the '
        'largest of every 32 values in two bits (128 times); "low_rank" one of the two factors of each matrix in turn, '
        "of rank 8 (85 to 650 times, by the size of the matrices). The objects Int8, Int4, TopK, Sparse and LowRank "
        "have their own settings. What a lossy compression leaves out is kept and sent with the block's next delta or "
        'commit (error feedback). With "auto" the clients agree in round 0 on the first of "none", "bf16", "int8" and '
        '"int4" whose exchanges are hidden behind local_steps, or, if none are, on the one with the shortest; a '
        'resumed run keeps it. What "topk", "sparse" and "low_rank" lose depends on how often a block is visited, so '
        '"auto" does not take them.',
    )
    aggregation: Aggregation = option(
        default="mean",
        converter=resolve_aggregation,
        help='How the deltas become their mean: "mean", "secure", or an object. With "mean" each client\'s delta '
        "travels by itself, and the server of a part of the block reads and adds the deltas of all clients. With "
        "'secure' each site sends the sum of its clients' deltas as whole numbers under masks, and a server reads the "
        "sum over all sites alone; the run then needs `federation`, three sites or more, and "
        "pip install 'lightning-parablock[private]'. The object SecureAggregation has its own settings: one or two "
        "bytes per value, and the least number of sites. See docs/method.md.",
    )
