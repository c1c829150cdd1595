"""How fast the links are: a timed exchange in the pattern of a topology, on a group of its own.

1. Every rank that exchanges with another posts all its receives, then all its sends, in messages of one chunk.
2. All ranks take the time of the slowest one.
3. The size is doubled until a try takes long enough to be trusted; the last try counts. Those before it have opened the
   connections, grown TCP's windows and emptied the token buckets of shaped links.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_parablock.meeting.devices import open_group
from lightning_parablock.settings import Topology

FIRST_BYTES = 1 << 14
"""Sent to each peer in the first try."""
LAST_BYTES = 1 << 26
"""At most so much is sent over one link in the last try."""
LONG_ENOUGH_S = 1.0


@dataclass(frozen=True)
class LinkSample:
    """A timed exchange, the same on every rank.

    Attributes:
        pair_bytes: Bytes sent to each peer and received from it at the same time.
        elapsed_s: Seconds until the slowest rank had sent and received everything.
    """

    pair_bytes: int
    elapsed_s: float


def probe_links(
    topology: Topology, *, backend: str, device: torch.device, chunk_bytes: int, timeout_s: float
) -> LinkSample:
    """Time an exchange between the ranks of the default process group; collective, takes some seconds.

    Draws no random numbers and uses no group but its own.

    Args:
        topology: "sharded": every rank exchanges with every other; "star": each exchanges with rank 0 alone.
        backend: "gloo" or "nccl".
        device: Device of the messages.
        chunk_bytes: Size of one message.
        timeout_s: Limit for each wait.

    Raises:
        RuntimeError: a rank was lost or the limit was reached; what the backend raises.
    """
    group = open_group(backend, timeout_s)
    n_ranks = dist.get_world_size()
    peers = _peers(topology, dist.get_rank(), n_ranks)
    pair_bytes, elapsed_s = FIRST_BYTES // 2, 0.0
    while elapsed_s < LONG_ENOUGH_S and 2 * pair_bytes * (n_ranks - 1) <= LAST_BYTES:
        pair_bytes *= 2
        elapsed_s = _slowest(_timed(peers, pair_bytes, device, chunk_bytes, group), device, group)
    # On the default group: afterwards no rank is inside the other one any more.
    dist.all_reduce(torch.zeros(1, dtype=torch.float32, device=device))
    dist.destroy_process_group(group)
    return LinkSample(pair_bytes, elapsed_s)


def _peers(topology: Topology, rank: int, n_ranks: int) -> list[int]:
    """The peers in a star, or all others; each rank begins with the one after it."""
    if topology == "star" and rank > 0:
        return [0]
    return [(rank + step) % n_ranks for step in range(1, n_ranks)]


def _timed(
    peers: list[int], pair_bytes: int, device: torch.device, chunk_bytes: int, group: dist.ProcessGroup
) -> float:
    """Seconds that one exchange takes on this rank, from a point that all ranks have reached."""
    outgoing = torch.zeros(pair_bytes, dtype=torch.uint8, device=device)
    incoming = [torch.zeros_like(outgoing) for _ in peers]
    _slowest(0.0, device, group)  # a barrier
    started_s = time.perf_counter()
    operations = [
        dist.P2POp(dist.irecv, part, peer, group)
        for peer, whole in zip(peers, incoming, strict=True)
        for part in whole.split(chunk_bytes)
    ]
    operations += [dist.P2POp(dist.isend, part, peer, group) for part in outgoing.split(chunk_bytes) for peer in peers]
    for work in dist.batch_isend_irecv(operations):
        work.wait()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - started_s


def _slowest(elapsed_s: float, device: torch.device, group: dist.ProcessGroup) -> float:
    slowest: Tensor = torch.tensor([elapsed_s], dtype=torch.float64, device=device)
    dist.all_reduce(slowest, dist.ReduceOp.MAX, group)
    return float(slowest.item())
