"""``local_steps="auto"`` and ``compression="auto"``: the clients agree on K and on the codec in round 0.

Nothing is computed that the run would not compute anyway. A probe with a forward pass of its own would take a batch
that the data loader cannot take back, and would have to restore whatever a module changes as it runs: buffers, random
states, metrics, gradients, state in attributes of any name. So the first real local steps are timed. K is open while
they run, which changes nothing: nothing is in flight in round 0, and a round has at least the steps already made. Then,
at the same step on every client,

1. the clients exchange how long a step took; the slowest one counts;
2. they time an exchange of some megabytes in the pattern of the topology, while no client computes; the slowest counts;
3. each derives the same K and the same codec from the same figures, and round 0 continues to K steps. Nothing of any
   block has been sent by then, so its own exchange has the codec, too.

From then on the run is the run that was given this K and this codec: same settings, same checkpoints, same bits.

Where clients take turns, the steps of each rank's first turn are timed. A round then lasts as long as the turns of its
slowest rank, and an exchange carries a delta for each client of the cohort: K hides the longest exchange that the
cohorts can bring behind the shortest round. An epoch, whose length in rounds depends on K, gets its length with it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from lightning_utilities.core.rank_zero import rank_zero_info
from torch import nn

from lightning_parablock.blocks.partition import Block
from lightning_parablock.codecs.compression import AUTO_CODECS
from lightning_parablock.federation.rounds import RoundEngine
from lightning_parablock.planning.choice import HEADROOM, Choice, choose_local_steps, least_lossy
from lightning_parablock.planning.compute import relative_step_costs
from lightning_parablock.planning.rank_turns import RankTurns
from lightning_parablock.planning.timing import Links, exchange_of_ranks_s, links_of
from lightning_parablock.planning.traffic import Deltas, carried_scalars
from lightning_parablock.settings import Settings, option_word
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.system.units import readable_bps, readable_s
from lightning_parablock.transport.link_probe import LinkSample

MIN_AUTO_STEPS = 4
"""Steps made before K is known, and therefore the smallest K: the first warms up, the others are timed.

A smaller K that was given leaves fewer steps to time.
"""


class StepClock:
    """Times the local steps of round 0; it is first read before them.

    Args:
        device: Device of the model; it is synchronized before the clock is read.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._ticks_s: list[float] = []

    def tick(self) -> None:
        """Record the end of a step, or that the first one begins."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._ticks_s.append(time.perf_counter())

    @property
    def is_complete(self) -> bool:
        """Whether enough steps have been timed."""
        return len(self._ticks_s) > MIN_AUTO_STEPS

    @property
    def shortest_s(self) -> float:
        """Seconds of the shortest step, with data loading and callbacks, but not with what happens now and then.

        The first one counts only where it is alone: in a run that was resumed just before round 0 ended.
        """
        steps_s = [after - before for before, after in pairwise(self._ticks_s)]
        return min(steps_s[1:] or steps_s)


@dataclass(frozen=True)
class Measured:
    """What the clients have measured together; the same on every client.

    Attributes:
        block: Index of the block that round 0 trains.
        slowest_s: Seconds per local step on that block, on the slowest client.
        step_s: Seconds that one local step of every client of a round takes, in the shortest round: the same where
            each rank trains one client.
        steps: Local steps made so far.
        deltas: The most deltas of an exchange, rank by rank.
        sample: A timed exchange; None with one rank.
        caps_bps: ``upload_bps`` of each rank.
    """

    block: int
    slowest_s: float
    step_s: float
    steps: int
    deltas: Sequence[Deltas]
    sample: LinkSample | None
    caps_bps: Sequence[float | None] = (None,)


def settle_pending(ranks: RankStrategy, module: nn.Module, engine: RoundEngine, clock: StepClock) -> Settings | None:
    """Record a step of round 0; once there are enough, agree on what is pending.

    Collective at the step at which the clients agree, which is the same on all of them.

    Args:
        ranks: The ranks of the run.
        module: The model.
        engine: In round 0, with settings pending.
        clock: Times its steps.

    Returns:
        The settings with what was pending; None while it is open.
    """
    clock.tick()
    if not (clock.is_complete or engine.turn_is_over):
        return None
    settings = engine.settings
    is_idle = engine.active_client is None
    told = ranks.gather_objects((None if is_idle else clock.shortest_s, engine.block, settings.upload_bps))
    sample = ranks.time_links(settings)
    timed = [(step_s, block) for step_s, block, _ in told if step_s is not None]
    fastest_s, slowest_s = min(timed)[0], max(timed)[0]
    turns = RankTurns.of(engine.schedule.cohorts, ranks.hosting.by_rank)
    measured = Measured(
        block=timed[0][1],
        slowest_s=slowest_s,
        # Of a rank without a client in the first turn nothing is known: nothing is hidden behind slowness of its own.
        step_s=turns.shortest_s([fastest_s if step_s is None else step_s for step_s, _, _ in told]),
        steps=engine.steps,
        deltas=turns.most_deltas,
        sample=sample,
        caps_bps=[cap_bps for _, _, cap_bps in told],
    )
    sizes = {name: parameter.numel() for name, parameter in module.named_parameters()}
    return agree_on_pending(sizes, engine.flat.blocks, settings, measured)


def agree_on_pending(sizes: dict[str, int], blocks: list[Block], settings: Settings, measured: Measured) -> Settings:
    """The settings with K and codec; a pure function of what all clients share, so that all arrive at the same.

    Args:
        sizes: Number of scalars per parameter of the model, in order.
        blocks: The run's blocks.
        settings: With ``local_steps``, ``compression`` or both pending.
        measured: By all clients together.
    """
    costs = relative_step_costs(sizes, blocks)
    step_s = [measured.step_s * cost / costs[measured.block] for cost in costs]
    sample = measured.sample
    n_ranks = len(measured.deltas)
    links = links_of(sample.pair_bytes, sample.elapsed_s, n_ranks, settings.topology) if sample else None
    links = links and links.capped(measured.caps_bps, settings.topology)
    steps = measured.steps if "local_steps" in settings.pending else settings.local_steps
    codecs = AUTO_CODECS if "compression" in settings.pending else (settings.compression,)
    exchanges_s = [_exchanges_s(blocks, settings.agreed(compression=codec), measured, links) for codec in codecs]
    choices = [choose_local_steps(step_s, each_s, settings.block_order, at_least=steps) for each_s in exchanges_s]
    best = least_lossy(choices, steps)
    settled = settings.agreed(local_steps=choices[best].local_steps, compression=codecs[best])
    words = {"local_steps": str(settled.local_steps), "compression": option_word(settled.compression)}
    found = ", ".join(f"{name}: {word}" for name, word in words.items() if name in settings.pending)
    if links is None:
        rank_zero_info(f"parablock: {found}; one process has nothing to exchange")
        return settled
    longest = max(range(len(blocks)), key=exchanges_s[best].__getitem__)
    plain = f", {readable_s(exchanges_s[0][longest])} without compression" if best else ""
    facts = (
        f"the slowest client takes {readable_s(measured.slowest_s)} per step{_turns(measured)}, "
        f"the slowest link carries {readable_bps(links.client_bps)}, "
        f"the longest exchange ({blocks[longest].name}) takes {readable_s(exchanges_s[best][longest])}{plain}"
    )
    if "compression" in settings.pending:
        why = choices[best].reason(words["compression"], steps)
        rank_zero_info(f"parablock: {found}, agreed by the clients: {facts}; {why}")
    else:
        rank_zero_info(_said(choices[best], facts))
    return settled


def _exchanges_s(blocks: list[Block], settings: Settings, measured: Measured, links: Links | None) -> list[float]:
    carried = [carried_scalars(block.numel, block.shapes, settings.compression) for block in blocks]
    return [exchange_of_ranks_s(numel, measured.deltas, settings, links) if links else 0.0 for numel in carried]


def _turns(measured: Measured) -> str:
    if measured.step_s == measured.slowest_s:
        return ""
    return f" (one of each client in a round's turns: {readable_s(measured.step_s)} at least)"


def _said(choice: Choice, facts: str) -> str:
    on_average = f"on average over the blocks {choice.mean_hiding_steps} would do"
    if choice.hides:
        return (
            f"parablock: local_steps: {choice.local_steps}, agreed by the clients: {facts}; "
            f"{choice.hiding_steps} steps hide it with {HEADROOM:g} times to spare, {on_average}"
        )
    return (
        f"parablock: local_steps: {choice.local_steps}, the most that 'auto' takes: {facts}; {choice.hiding_steps} "
        f"steps would hide it ({on_average}); compress, cut smaller blocks, or give local_steps a number"
    )
