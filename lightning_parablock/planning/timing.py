"""Seconds of a round, and how many local steps hide an exchange.

C_t is the computation of round t, M_t its exchange. Chunks stream: a server sums a chunk as soon as every client's is
there and sends its commit while later chunks still arrive, so on links that carry both directions at once an exchange
takes as long as the busiest direction of the busiest link. With S scalars of q bytes, N clients on links of B bytes per
second and a star's server on one of B_s::

    sharded   M = 2 (N - 1)/N S q / B
    star      M = max((N - 1) S q / B_s, S q / B), and one chunk more: the last commit waits for the last deltas;
              with N > 2 another one: a chunk waits for the slowest of several clients

Bytes are those of ``traffic.py``, headers included. Latency, encoding and summing are not counted: they are small
compared to the transfer wherever hiding it matters.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from lightning_parablock.federation.schedule import block_of_round
from lightning_parablock.planning.traffic import Deltas, largest_message_bytes, traffic_of_ranks
from lightning_parablock.settings import BlockOrder, Settings, Topology

NOMINAL_GOODPUT = 0.95
"""Share of a link's nominal rate left for payload: the rest is taken by Ethernet, IP and TCP headers."""
PASSES = 8
"""Number of visits of each block over which seconds per round are averaged."""


@dataclass(frozen=True)
class Links:
    """Goodput of links, in bits of payload per second in one direction while the other direction is busy, too.

    Attributes:
        client_bps: Rate of every client's link.
        server_bps: Rate of the link of a star's server.
    """

    client_bps: float
    server_bps: float

    def capped(self, caps_bps: Sequence[float | None], topology: Topology) -> Links:
        """These links with caps on what clients send, by client id; client 0 serves a star."""
        caps = [float("inf") if cap is None else cap for cap in caps_bps]
        clients = caps[1:] if topology == "star" and len(caps) > 1 else caps
        return Links(min(self.client_bps, *clients), min(self.server_bps, caps[0]))


def exchange_s(numel: int, n_clients: int, settings: Settings, links: Links) -> float:
    """M: seconds of the exchange of a block of ``numel`` scalars, by the module's formulas."""
    return exchange_of_ranks_s(numel, [Deltas(1, n_clients - 1)] * n_clients, settings, links)


def exchange_of_ranks_s(numel: int, deltas: Sequence[Deltas], settings: Settings, links: Links) -> float:
    """M where ranks host any number of clients, of which any number is in the cohort.

    Args:
        numel: Number of scalars of the block.
        deltas: How many deltas pass through each rank.
        settings: Topology, codec and chunks.
        links: Links of the ranks.
    """
    others = len(deltas) - 1
    if not others:
        return 0.0
    busiest_bytes = [max(one.upload_bytes, one.download_bytes) for one in traffic_of_ranks(numel, deltas, settings)]
    if settings.topology == "sharded":
        return 8 * max(busiest_bytes) / links.client_bps
    tail_bytes = largest_message_bytes(numel, settings) * min(others, 2)
    return sum(
        8 * max(at_server / links.server_bps, at_client / links.client_bps)
        for at_server, at_client in (
            (busiest_bytes[0], max(busiest_bytes[1:])),
            (others * tail_bytes, tail_bytes),
        )
    )


def links_of(pair_bytes: int, elapsed_s: float, n_clients: int, topology: Topology) -> Links:
    """The rates of links on which a timed exchange of ``pair_bytes`` to and from each peer took ``elapsed_s``.

    In a star either the server's link or a client's was the limit, and one measurement cannot tell which: both rates
    are lower bounds that reproduce the measured time.
    """
    pair_bps = 8 * pair_bytes / elapsed_s
    all_bps = (n_clients - 1) * pair_bps
    return Links(all_bps if topology == "sharded" else pair_bps, all_bps)


# --- seconds per round ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RoundTimes:
    """Averages over the rounds of a long run.

    Attributes:
        compute_s: Mean C.
        exchange_s: Mean M.
        blocking_s: Seconds per round at delay 0: mean of C_t + M_t.
        parablock_s: Seconds per round at delay K: mean of max(C_t, M_{t-1}).
        hidden_share: Share of the exchange that runs behind computation at delay K, 0 to 1; 1 where there is none.
        busy_share: Compute utilization at delay K: the share of the time in which a client computes, 0 to 1.
    """

    compute_s: float
    exchange_s: float
    blocking_s: float
    parablock_s: float
    hidden_share: float
    busy_share: float


def round_times(compute_s: Sequence[float], exchanges_s: Sequence[float]) -> RoundTimes:
    """Average times of a run of these rounds, without its beginning and its drain.

    Args:
        compute_s: C_t of each round, in order; at least two rounds.
        exchanges_s: M_t of each round.
    """
    behind = list(zip(compute_s[1:], exchanges_s[:-1], strict=True))
    mean_c, mean_m = _mean(compute_s), _mean(exchanges_s)
    exchanged_s, lasting_s = math.fsum(m for _, m in behind), math.fsum(max(c, m) for c, m in behind)
    return RoundTimes(
        compute_s=mean_c,
        exchange_s=mean_m,
        blocking_s=mean_c + mean_m,
        parablock_s=lasting_s / len(behind),
        hidden_share=math.fsum(min(c, m) for c, m in behind) / exchanged_s if exchanged_s else 1.0,
        busy_share=math.fsum(c for c, _ in behind) / lasting_s,
    )


def warm_up_s(compute_s: Sequence[float], exchanges_s: Sequence[float]) -> float:
    """Seconds that rounds without delay add to a run at delay K: of each exchange what would be hidden there.

    Args:
        compute_s: C_t of these rounds, in order, and of the one after them.
        exchanges_s: M_t of the same rounds.
    """
    return math.fsum(min(c, m) for c, m in zip(compute_s[1:], exchanges_s[:-1], strict=True))


def schedule(settings: Settings, n_blocks: int, passes: int = PASSES) -> list[int]:
    """Indices of the blocks of the first rounds, ``passes`` visits of each."""
    return first_blocks(settings, n_blocks, passes * n_blocks)


def first_blocks(settings: Settings, n_blocks: int, n_rounds: int) -> list[int]:
    """Indices of the blocks of the first ``n_rounds`` rounds."""
    return [block_of_round(settings.block_order, n_blocks, t, settings.seed) for t in range(n_rounds)]


# --- local steps that hide the exchange -------------------------------------------------------------------------------


def hiding_steps(step_s: Sequence[float], exchanges_s: Sequence[float], order: BlockOrder) -> int:
    """The smallest K with C_t >= M_{t-1} in every round that can occur in the order.

    Args:
        step_s: Seconds of one local step on each block.
        exchanges_s: M of each block.
        order: Block order, which determines which block can follow which.
    """
    pairs = following_blocks(order, len(step_s))
    return max(_steps_for(exchanges_s[before], step_s[after]) for before, after in pairs)


def mean_hiding_steps(step_s: Sequence[float], exchanges_s: Sequence[float]) -> int:
    """The smallest K whose computation is as long as the exchange on average over the blocks."""
    return _steps_for(_mean(exchanges_s), _mean(step_s))


def busy_steps(step_s: Sequence[float], exchanges_s: Sequence[float], rounds: Sequence[int], share: float) -> int:
    """The smallest K with which clients compute for at least a share of the time, at delay K.

    Args:
        step_s: Seconds of one local step on each block.
        exchanges_s: M of each block.
        rounds: Indices of the blocks of the rounds, in order; at least two rounds.
        share: Compute utilization, more than 0 and at most 1.
    """

    def busy_share(steps: int) -> float:
        return round_times([steps * step_s[b] for b in rounds], [exchanges_s[b] for b in rounds]).busy_share

    # The share grows with K, and is 1 once every exchange is hidden.
    low, high = 0, max(_steps_for(exchanges_s[before], step_s[after]) for before, after in pairwise(rounds))
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if busy_share(middle) >= share else (middle, high)
    return high


def following_blocks(order: BlockOrder, n_blocks: int) -> Iterable[tuple[int, int]]:
    """Pairs of blocks that can be trained in two consecutive rounds, as (first, second)."""
    if order in ("sequential", "reverse"):
        pairs = [(i, (i + 1) % n_blocks) for i in range(n_blocks)]
        return pairs if order == "sequential" else [(after, before) for before, after in pairs]
    repeats = order in ("random", "importance") or n_blocks == 1
    return [(i, j) for i in range(n_blocks) for j in range(n_blocks) if repeats or i != j]


def _steps_for(exchange: float, step: float) -> int:
    steps = max(1, math.ceil(exchange / step))
    # Division rounds: return the smallest integer that satisfies the condition, not a neighbour of it.
    while steps * step < exchange:
        steps += 1
    while steps > 1 and (steps - 1) * step >= exchange:
        steps -= 1
    return steps


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
