"""Opens the watch and the transport that suit the number of ranks."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.codecs.low_rank import FactorLayout
from lightning_parablock.errors import CallOrderError
from lightning_parablock.membership.membership import Membership
from lightning_parablock.membership.watch import Watch
from lightning_parablock.server.aggregation import Aggregator, MeanAggregator
from lightning_parablock.server.low_rank import LowRankAggregator
from lightning_parablock.server.secure.aggregator import Hosts, SecureAggregator
from lightning_parablock.server.secure.site import Masking
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import LowRank, SecureAggregation, Settings
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.chunks import shard_bounds
from lightning_parablock.transport.loopback import LoopbackTransport
from lightning_parablock.transport.torch_distributed import TorchDistributedTransport


@dataclass(frozen=True)
class Federation:
    """The members of a run, and the watch over them; the latter is None where this rank is alone."""

    membership: Membership
    watch: Watch | None


def open_federation(
    settings: Settings,
    clients: Sequence[Sequence[int]],
    sites: tuple[str, ...] = (),
    hosts: tuple[str, ...] = (),
) -> Federation:
    """Start watching the ranks of the default process group; collective where there are several.

    Args:
        settings: The limits.
        clients: Ids of the clients that each rank hosts, ascending.
        sites: Name of each rank's site; empty where sites have no names.
        hosts: Name of each rank's machine; empty where all run on this one.
    """
    hosted = tuple(tuple(ids) for ids in clients)
    hosts = hosts or (socket.gethostname(),) * len(hosted)
    if len(hosted) == 1:
        return Federation(Membership(0, hosts, hosted, 0, sites), None)
    membership = Membership(0, hosts, hosted, dist.get_rank(), sites)
    return Federation(membership, Watch(membership, settings.heartbeat_s, settings.exchange_timeout_s))


def open_transport(
    federation: Federation,
    flat: FlatBlocks,
    settings: Settings,
    *,
    device: torch.device,
    backend: str,
    masks: Masking | None = None,
    instead_of: Transport | None = None,
) -> Transport:
    """Open the transport of a run; collective where there are several ranks.

    Args:
        federation: The ranks.
        flat: The model's blocks, holding the common starting value: it becomes the server's W.
        settings: The run's settings.
        device: The model's device.
        backend: "gloo" or "nccl".
        masks: Of this site, where the aggregation is secure.
        instead_of: A transport with another codec, to which nothing has been submitted: it is closed, and its W is
            taken over.
    """
    members = federation.membership
    mine = _served_by(members, flat, settings)
    if instead_of is None:
        initial = [flat.pack(block)[bounds].to("cpu", copy=True) for block, bounds in enumerate(mine)]
    else:
        instead_of.close()
        initial = instead_of.server.values
    server = ServerShard(
        settings.server_optimizer,
        initial,
        [bounds.start for bounds in mine],
        compression=settings.compression.of_values,
        as_held=None if flat.is_exact else lambda block, first, values: flat.as_held(block, values, first),
    )
    aggregator = _aggregator_of(settings, members, flat, server, masks)
    if federation.watch is None:
        return LoopbackTransport(server, aggregator)
    return TorchDistributedTransport(
        members,
        federation.watch,
        settings,
        server,
        blocks=flat.blocks,
        device=device,
        backend=backend,
        aggregator=aggregator,
    )


def _served_by(members: Membership, flat: FlatBlocks, settings: Settings) -> list[slice]:
    """The slice of each block of which this rank's server keeps W."""
    if isinstance(settings.compression, LowRank):
        return [slice(0, block.numel) for block in flat.blocks]
    return [shard_bounds(block.numel, members.n_ranks, settings.topology)[members.rank] for block in flat.blocks]


def _aggregator_of(
    settings: Settings, members: Membership, flat: FlatBlocks, server: ServerShard, masks: Masking | None
) -> Aggregator:
    choice, compression = settings.aggregation, settings.compression
    if isinstance(compression, LowRank):
        shapes = [[parameter.shape for parameter in flat.parameters(block)] for block in range(len(flat.blocks))]
        return LowRankAggregator([FactorLayout(one, compression.rank) for one in shapes], compression.decay)
    if not isinstance(choice, SecureAggregation):
        return MeanAggregator()
    if masks is None:
        raise CallOrderError("aggregation='secure' needs masks before the first exchange")
    numels = [block.numel for block in flat.blocks]
    return SecureAggregator(
        choice.bytes_per_value, numels, Hosts(members.sites, members.clients, members.rank), masks, server
    )
