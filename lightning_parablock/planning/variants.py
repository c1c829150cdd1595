"""Variants of the exchange, compared side by side, and the recommended one."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import get_args

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.compression import AUTO_CODECS
from lightning_parablock.planning.choice import Choice, choose_local_steps, least_lossy
from lightning_parablock.planning.memory import MemoryPart, ModelSize, memory_parts
from lightning_parablock.planning.timing import (
    Links,
    RoundTimes,
    busy_steps,
    exchange_s,
    first_blocks,
    hiding_steps,
    mean_hiding_steps,
    round_times,
    schedule,
    warm_up_s,
)
from lightning_parablock.planning.traffic import busiest, traffic_of_clients
from lightning_parablock.settings import COMPRESSIONS, Settings, Topology, option_word

BUSY_SHARE = 0.95
"""Compute utilization for which plans give the number of local steps; that of Streaming DiLoCo (arXiv 2501.18512)."""


@dataclass(frozen=True)
class Workload:
    """The computation of the clients.

    Attributes:
        size: Sizes of the model and its blocks.
        step_s: Seconds of one local step on each block, on the slowest client.
        blocks: The blocks; empty where their names do not matter.
    """

    size: ModelSize
    step_s: tuple[float, ...]
    blocks: tuple[Block, ...] = ()


@dataclass(frozen=True)
class Variant:
    """One variant of the exchange, and the resource needs of its rounds.

    Attributes:
        settings: Settings of the variant, with delay K.
        workload: Computation with its blocks.
        round_bytes: Bytes sent by the busiest client per round, headers included, mean over the blocks; it receives as
            many.
        memory: Memory of the client that needs the most, at delay K.
        blocking_memory: The same at delay 0.
        times: Seconds per round.
        hiding_steps: The smallest K that hides every exchange.
        mean_hiding_steps: The smallest K that hides the mean exchange behind the mean computation.
        busy_steps: The smallest K with which clients compute for ``BUSY_SHARE`` of the time.
        choice: The recommended K: the settings' own if it hides every exchange with room to spare, otherwise more.
        warm_up_s: Seconds that the rounds without delay (``delay_warmup_rounds``) add to the whole run.
    """

    settings: Settings
    workload: Workload
    round_bytes: float
    memory: list[MemoryPart]
    blocking_memory: list[MemoryPart]
    times: RoundTimes
    hiding_steps: int
    mean_hiding_steps: int
    busy_steps: int
    choice: Choice
    warm_up_s: float


def variant(workload: Workload, n_clients: int, settings: Settings, links: Links) -> Variant:
    """Resource needs of a round with these settings, at delay K and at delay 0."""
    numels, step_s = workload.size.carried(settings.compression), workload.step_s
    of_numel = {numel: exchange_s(numel, n_clients, settings, links) for numel in set(numels)}  # most blocks are alike
    exchanges_s = [of_numel[numel] for numel in numels]
    rounds = schedule(settings, len(numels))
    compute_s = [settings.local_steps * step_s[block] for block in rounds]
    first = first_blocks(settings, len(numels), settings.delay_warmup_rounds + 1)
    blocking = dataclasses.replace(settings, delay_steps=0)
    sent = {numel: busiest(traffic_of_clients(numel, n_clients, settings)).upload_bytes for numel in of_numel}
    return Variant(
        settings=settings,
        workload=workload,
        round_bytes=sum(sent[numel] for numel in numels) / len(numels),
        memory=memory_parts(workload.size, n_clients, settings),
        blocking_memory=memory_parts(workload.size, n_clients, blocking),
        times=round_times(compute_s, [exchanges_s[block] for block in rounds]),
        hiding_steps=hiding_steps(step_s, exchanges_s, settings.block_order),
        mean_hiding_steps=mean_hiding_steps(step_s, exchanges_s),
        busy_steps=busy_steps(step_s, exchanges_s, rounds, BUSY_SHARE),
        choice=choose_local_steps(step_s, exchanges_s, settings.block_order, at_least=settings.local_steps),
        warm_up_s=warm_up_s([settings.local_steps * step_s[b] for b in first], [exchanges_s[b] for b in first]),
    )


def variants(
    workload_of: Callable[[Settings], tuple[Workload, Settings]], n_clients: int, settings: Settings, links: Links
) -> list[Variant]:
    """Variants for every topology and compression, with the other settings unchanged; least lossy first.

    Args:
        workload_of: For the settings of a variant: the computation, and these settings with the blocks that it has.
        n_clients: Number of clients.
        settings: The settings.
        links: The clients' links.
    """
    found: list[Variant] = []
    for topology in get_args(Topology):
        for compression in COMPRESSIONS.values():
            varied = dataclasses.replace(settings, topology=topology, compression=compression())
            workload, cut = workload_of(varied)
            found.append(variant(workload, n_clients, cut, links))
    return found


def recommended(found: Sequence[Variant]) -> Variant:
    """The variant with the codec that ``compression="auto"`` would take at the K of the settings.

    Of two topologies the one with the shorter exchange is chosen, sharded if they are equal.
    """
    best = [
        min((v for v in found if v.settings.compression == codec), key=lambda v: v.times.exchange_s)
        for codec in AUTO_CODECS
    ]
    return best[least_lossy([v.choice for v in best], best[0].settings.local_steps)]


def reason(chosen: Variant) -> str:
    """Why the variant is recommended, in words."""
    return chosen.choice.reason(option_word(chosen.settings.compression), chosen.settings.local_steps)
