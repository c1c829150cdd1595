"""Memory of a rank by purpose, in the steady state of a run, without activations.

Bytes per parameter of a block, W being the bytes of a weight (4, or 2 with bfloat16)::

    active block     gradient W, AdamW's moments 8, start value 4; with bfloat16 a master copy 4 and, in the
                     optimizer's step, the float32 gradient 4                                           (device)
    block in flight  committed value 4, delta 4, the commit that arrives 4                              (device)
                     and, where the compression is lossy, the error-feedback residual from before it 4    (host)
    every block      error feedback of a lossy compression 4                                              (host)
    served shard     committed value 4, its server optimizer's state 4 per moment, error feedback 4       (host)
                     and of blocks in flight the last two as they were before the exchange               (host)

Where a rank hosts several clients, deltas (in flight, and of the earlier turns of the running round) and the error
feedback from before exist once per turn of a round; error feedback and optimizer states that are kept exist once per
client, in a long run for all blocks.

At most ``WINDOW`` messages are received and ``SEND_WINDOW`` sent at once, per peer and kind, however long a block is.
With delay 0 the active block is itself the one in flight, and its start value is its committed value. Where the first
rounds alone have none, the larger one of both kinds of rounds counts.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.compression import AUTO_CODECS, Compression
from lightning_parablock.codecs.low_rank import Shapes
from lightning_parablock.federation.cohorts import hosted_clients, turns_of_a_round
from lightning_parablock.planning.traffic import Sizes, carried_scalars, message_sizes
from lightning_parablock.server.arithmetic import moments
from lightning_parablock.settings import LowRank, SecureAggregation, Settings
from lightning_parablock.transport.chunks import SEND_WINDOW, WINDOW, chunks_of, shard_bounds

FLOAT_BYTES = 4
ADAM_MOMENTS = 2


@dataclass(frozen=True)
class ModelSize:
    """Sizes that determine the memory needs of a model.

    Attributes:
        numels: Number of scalars of each block.
        weights_bytes: Bytes of all parameters, frozen ones too.
        weight_bytes: Bytes of one parameter of a block.
        shapes: Of each block's parameters; empty where they are not known.
    """

    numels: tuple[int, ...]
    weights_bytes: int
    weight_bytes: int = FLOAT_BYTES
    shapes: tuple[Shapes, ...] = ()

    def carried(self, compression: Compression) -> tuple[int, ...]:
        """Number of scalars that an exchange of each block carries."""
        shapes = self.shapes or ((),) * len(self.numels)
        return tuple(carried_scalars(n, of_block, compression) for n, of_block in zip(self.numels, shapes, strict=True))


def model_size(module: nn.Module, blocks: Sequence[Block]) -> ModelSize:
    """Sizes of a model that determine its memory needs."""
    parameters = dict(module.named_parameters())
    return ModelSize(
        numels=tuple(block.numel for block in blocks),
        weights_bytes=sum(p.numel() * p.element_size() for p in parameters.values()),
        weight_bytes=min(parameters[name].element_size() for block in blocks for name in block.parameter_names),
        shapes=tuple(block.shapes for block in blocks),
    )


@dataclass(frozen=True)
class MemoryPart:
    """Memory for one purpose: its name, place ("device" or "host...") and size in bytes."""

    purpose: str
    where: str
    size_bytes: int

    @property
    def on_device(self) -> bool:
        """Whether the memory is on the device; otherwise it is host memory."""
        return self.where == "device"


def exchanges_in_flight(settings: Settings) -> int:
    """Maximum number of rounds whose exchanges are in flight on a rank while it computes."""
    return math.ceil(settings.delay_steps / settings.local_steps)


def memory_parts(model: ModelSize, n_ranks: int, settings: Settings) -> list[MemoryPart]:
    """Memory of the rank that needs the most, in its largest round, once each of its clients has trained all blocks.

    Where the compression is open until round 0, it is that of the one that takes the most.
    """
    kinds: Sequence[Settings] = ()
    if "compression" in settings.pending:
        kinds = [settings.agreed(compression=codec) for codec in AUTO_CODECS]
    elif settings.delay_steps and settings.delay_warmup_rounds:
        # An exchange that is waited for has the block that was trained last in flight, which may be the largest one.
        later = dataclasses.replace(settings, pending=(), delay_warmup_rounds=0)
        kinds = [later, dataclasses.replace(later, delay_steps=0)]
    if kinds:
        of_kinds = [memory_parts(model, n_ranks, kind) for kind in kinds]
        return max(of_kinds, key=lambda parts: [total_bytes(parts, on_device=where) for where in (True, False)])
    carried = model.carried(settings.compression)
    hosted = hosted_clients(settings.clients or n_ranks, n_ranks)
    n_hosted, turns = max(map(len, hosted)), turns_of_a_round(settings.cohort, hosted)
    active, flying = _largest_round(model, turns, settings)
    parts = [
        MemoryPart("weights", "device", model.weights_bytes),
        *(
            MemoryPart(purpose, "device", active * each)
            for purpose, each in _of_active(model.weight_bytes, turns, settings)
        ),
        *_of_left_blocks(n_hosted * sum(model.numels) - active, settings),
        *(MemoryPart(purpose, "device", size) for purpose, size in _of_flying(sum(flying), turns, settings)),
        MemoryPart("messages under way", "host", window_bytes(max(carried), n_ranks, settings)),
        *_of_server(sum(model.numels), sum(flying), n_ranks, settings),
    ]
    if settings.leaves_residuals:
        parts += [
            MemoryPart("error feedback of the deltas", "host", FLOAT_BYTES * n_hosted * sum(model.numels)),
            MemoryPart("error feedback from before the exchanges in flight", "host", FLOAT_BYTES * turns * sum(flying)),
        ]
    if isinstance(settings.compression, LowRank):
        largest = max((math.prod(shape) for of_block in model.shapes for shape in of_block), default=0)
        parts.append(MemoryPart("the matrix whose factor is computed", "device", FLOAT_BYTES * largest))
    if isinstance(settings.aggregation, SecureAggregation):
        width = settings.aggregation.bytes_per_value
        parts.append(MemoryPart("masks of the round's block, made while it trains", "host", width * active))
    return parts


def total_bytes(parts: Sequence[MemoryPart], *, on_device: bool) -> int:
    """Sum of the parts on the device, or in host memory."""
    return sum(part.size_bytes for part in parts if part.on_device == on_device)


def window_bytes(numel: int, n_ranks: int, settings: Settings) -> int:
    """Bytes of the message buffers of the busiest rank while a block is exchanged, both directions and kinds."""
    if n_ranks == 1:
        return 0
    shards = Counter(shard.stop - shard.start for shard in shard_bounds(numel, n_ranks, settings.topology))
    posted = {scalars: _window_of(scalars, WINDOW, settings) for scalars in shards}
    leaving = {scalars: _window_of(scalars, SEND_WINDOW, settings) for scalars in shards}
    # In: deltas on my shard from each peer, and the others' commits. Out: deltas on their shards, and my commits.
    commits_bytes = sum(posted[scalars].commit_bytes * n for scalars, n in shards.items())
    deltas_bytes = sum(leaving[scalars].delta_bytes * n for scalars, n in shards.items())
    return max(
        (n_ranks - 1) * posted[mine].delta_bytes
        + commits_bytes
        - posted[mine].commit_bytes
        + deltas_bytes
        - leaving[mine].delta_bytes
        + leaving[mine].commit_bytes
        for mine in shards
    )


def _window_of(scalars: int, window: int, settings: Settings) -> Sizes:
    sizes = [part.stop - part.start for part in chunks_of(slice(0, scalars), settings.chunk_bytes, settings.topology)]
    return message_sizes(sorted(sizes)[-window:], settings)


def _largest_round(model: ModelSize, turns: int, settings: Settings) -> tuple[int, list[int]]:
    """Numbers of scalars of the active block and of each block in flight, in the round that needs the most memory."""
    n_flying = exchanges_in_flight(settings)
    if n_flying == 0:
        return max(model.numels), [max(model.numels)]
    each_active = sum(each for _, each in _of_active(model.weight_bytes, turns, settings))
    each_flying = sum(size for _, size in _of_flying(1, turns, settings))
    rounds = [(numel, _others(model.numels, index, n_flying)) for index, numel in enumerate(model.numels)]
    return max(rounds, key=lambda r: each_active * r[0] + each_flying * sum(r[1]))


def _others(numels: Sequence[int], active: int, n_flying: int) -> list[int]:
    """The largest blocks that may be in flight besides the active one, repeated if there are too few."""
    others = sorted((*numels[:active], *numels[active + 1 :]), reverse=True) or [numels[active]]
    return (others * n_flying)[:n_flying] if n_flying > len(others) else others[:n_flying]


def _of_active(weight_bytes: int, turns: int, settings: Settings) -> list[tuple[str, int]]:
    """Bytes per parameter of the active block, by purpose."""
    parts = [
        ("gradient of the active block", weight_bytes),
        ("optimizer state of the active block (AdamW)", ADAM_MOMENTS * FLOAT_BYTES),
        ("start value of the active block", FLOAT_BYTES),
    ]
    if weight_bytes < FLOAT_BYTES:
        parts.append(("float32 master copy of the active block", FLOAT_BYTES))
        parts.append(("float32 gradient in the optimizer's step", FLOAT_BYTES))
    if settings.delay_steps and turns > 1:  # at delay 0 they are the deltas in flight
        parts.append(("deltas of the round's earlier turns", (turns - 1) * FLOAT_BYTES))
    return parts


def _of_left_blocks(scalars: int, settings: Settings) -> list[MemoryPart]:
    """Local optimizer state of the blocks that are not being trained."""
    where = {"reset": None, "offload": "host", "keep": "device"}[settings.block_optimizer_state]
    if where is None or not scalars:
        return []
    return [MemoryPart("optimizer state of the other blocks (AdamW)", where, ADAM_MOMENTS * FLOAT_BYTES * scalars)]


def _of_flying(scalars: int, turns: int, settings: Settings) -> list[tuple[str, int]]:
    """Bytes of the blocks in flight on the device, by purpose."""
    committed = 0 if settings.delay_steps == 0 else FLOAT_BYTES * scalars
    return [
        ("committed values of the blocks in flight", committed),
        ("deltas in flight", turns * FLOAT_BYTES * scalars),
        ("commits that arrive", FLOAT_BYTES * scalars),
    ]


def _of_server(scalars: int, flying: int, n_ranks: int, settings: Settings) -> list[MemoryPart]:
    """State that a server keeps for its shard of all blocks, and earlier versions of the blocks in flight.

    With "low_rank" every rank has a server of the whole model.
    """
    everywhere = isinstance(settings.compression, LowRank)
    share = n_ranks if settings.topology == "sharded" and not everywhere else 1
    where = "host, client 0" if settings.topology == "star" and n_ranks > 1 and not everywhere else "host"
    states = moments(settings.server_optimizer)
    residuals = 1 if settings.compression.of_values.is_lossy else 0
    parts = (
        ("server: committed values", scalars),
        ("server: optimizer state", states * scalars),
        ("server: error feedback of the commits", residuals * scalars),
        ("server: both from before the exchanges in flight", (states + residuals) * flying),
    )
    return [MemoryPart(purpose, where, FLOAT_BYTES * math.ceil(n / share)) for purpose, n in parts if n]
