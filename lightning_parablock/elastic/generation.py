"""The exchanges of one generation, over a gloo group of its own that ends with it.

A generation is abandoned, not closed: its peers may be gone. Its connections are cut at once, so that the threads that
wait for a message, here and at its other members, end with an error that is not reported.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from typing_extensions import override

from lightning_parablock.blocks.partition import Block
from lightning_parablock.elastic.local_errors import ends_the_site
from lightning_parablock.errors import PeerError, PeerLostError
from lightning_parablock.meeting.devices import open_apart
from lightning_parablock.membership.membership import Membership
from lightning_parablock.regroup.log import Record
from lightning_parablock.server.aggregation import Aggregator
from lightning_parablock.server.shard import ServerShard
from lightning_parablock.settings import Settings
from lightning_parablock.system.bare_errors import bare
from lightning_parablock.transport.base import Transport
from lightning_parablock.transport.loopback import LoopbackTransport
from lightning_parablock.transport.pacing import Pacer
from lightning_parablock.transport.torch_distributed import TorchDistributedTransport
from lightning_parablock.transport.wires import GlooTicket, Ticket, Transfer, Wire

log = logging.getLogger(__name__)

_NOBODY = 99
"""Tag of a message that is never sent."""


def open_generation(
    record: Record,
    client: int,
    store: Store,
    server: ServerShard,
    settings: Settings,
    blocks: Sequence[Block],
    *,
    device: torch.device,
    limit_s: float,
    hosts: Mapping[int, str] | None = None,
    pacer: Pacer | None = None,
    aggregator: Aggregator | None = None,
) -> Transport:
    """Connect the members of a generation; each of them calls this at about the same time.

    Args:
        record: The generation.
        client: This member's client id.
        store: Where the members meet; may be shared with other generations.
        server: This member's shard, as it was staged.
        settings: Limits, chunk size, topology, codec.
        blocks: The partition.
        device: The model's device.
        limit_s: Limit for connecting.
        hosts: Name of each member's machine, for messages.
        pacer: Spaces all that this site uploads; None for one of this generation's own.
        aggregator: What travels, and what a server makes of it; None for each client's delta and their mean.

    Raises:
        PeerLostError: a member did not connect in time.
    """
    order = record.order
    if len(order) == 1:
        return LoopbackTransport(server, aggregator)
    membership = Membership(
        record.generation,
        tuple((hosts or {}).get(member, "its machine") for member in order),
        tuple((member,) for member in order),
        order.index(client),
        tuple(record.sites.get(member, f"{member}") for member in order),
    )
    prefix = f"parablock generation {record.generation}"
    try:
        meeting = PrefixStore(prefix, store)
        silence_s = settings.exchange_timeout_s
        group = open_apart(meeting, membership.rank, len(order), limit_s, silence_s=silence_s)
    except RuntimeError as error:
        names = ", ".join(membership.describe(rank) for rank in membership.peers)
        raise PeerLostError(
            f"generation {record.generation}: not connected to all of {names} within {limit_s:g} s ({error}); every "
            "site must reach every other by TCP"
        ) from error
    return _Generation(membership, settings, server, blocks, device, group, pacer, aggregator)


class _Generation(TorchDistributedTransport):
    def __init__(
        self,
        membership: Membership,
        settings: Settings,
        server: ServerShard,
        blocks: Sequence[Block],
        device: torch.device,
        group: dist.ProcessGroupGloo,
        pacer: Pacer | None,
        aggregator: Aggregator | None,
    ) -> None:
        self._apart = _WireApart(group, pins_memory=device.type == "cuda")
        super().__init__(
            membership,
            _Unwatched(membership),
            settings,
            server,
            blocks=blocks,
            device=device,
            backend="gloo",
            wire=self._apart,
            pacer=pacer,
            aggregator=aggregator,
        )

    @override
    def _located(self, error: PeerError, round_index: int, block: int) -> PeerError:
        if ends_the_site(error):
            return super()._located(error, round_index, block)
        return error.in_generation(round_index, self._blocks[block].name)

    @override
    def close(self) -> None:
        """Cut the connections; returns at once, and what the threads do afterwards has no effect."""
        self._apart.close()
        for _, thread in self._lanes:
            thread.end()
        if self._ahead is not None:
            self._ahead.end()


class _WireApart(Wire):
    """Messages over a group that torch does not know of.

    Args:
        group: The group.
        pins_memory: Whether buffers are page-locked.
    """

    device = torch.device("cpu")
    posts_early = True

    def __init__(self, group: dist.ProcessGroupGloo, *, pins_memory: bool) -> None:
        self._group: Any = group  # torch's type stubs lack its verbs
        self._pins_memory = pins_memory
        self._is_cut = threading.Event()

    @override
    def new_buffer(self, size_bytes: int) -> Tensor:
        return torch.empty(size_bytes, dtype=torch.uint8, pin_memory=self._pins_memory)

    @override
    def post(self, receives: Sequence[Transfer], sends: Sequence[Transfer]) -> tuple[list[Ticket], list[Ticket]]:
        if self._is_cut.is_set():
            raise PeerLostError("this generation of the members has ended")
        incoming = [self._posted(self._group.recv, one) for one in receives]
        return incoming, [self._posted(self._group.send, one) for one in sends]

    def _posted(self, verb: Callable[[list[Tensor], int, int], dist.Work], one: Transfer) -> Ticket:
        try:
            return GlooTicket(one, verb([one.message], one.rank, int(one.kind)))
        except RuntimeError as error:  # its connection has ended
            raise PeerLostError(f"no message can be posted: {error}") from error

    @override
    def close(self) -> None:
        """Cut all connections of the group: every transfer that is pending ends with an error."""
        if self._is_cut.is_set():
            return
        self._is_cut.set()
        # gloo has no call for it. A wait that reaches its limit ends all connections of its group; one for a peer whose
        # connection has ended already fails at once, so each peer is tried.
        rank = self._group.rank()
        for peer in (other for other in range(self._group.size()) if other != rank):
            with contextlib.suppress(RuntimeError):
                self._group.recv([torch.empty(1, dtype=torch.uint8)], peer, _NOBODY).wait(timedelta(milliseconds=1))


class _Unwatched:
    """The peers of a generation are not watched: the arbiter says which are lost, and the site's threads ask it.

    Args:
        membership: The members.
    """

    def __init__(self, membership: Membership) -> None:
        self._membership = membership

    @property
    def peers(self) -> _Unwatched:
        return self

    def behind(self, round_index: int) -> str:
        del round_index
        return ""

    def check_takes_part(self, round_index: int) -> None:
        """All members take part in all rounds."""

    def check(self) -> None:
        """The site's own check sees what ends its part."""

    def note_step(self, round_index: int) -> None:
        """Not needed: no peer asks for it."""

    def note_submitted(self, round_index: int) -> None:
        """Not needed: no peer asks for it."""

    def announce_end(self, rounds: int) -> None:
        """All members end after the same round."""

    def explain(self, cause: Exception, rank: int) -> Exception:
        return cause if isinstance(cause, PeerError) else PeerLostError(f"{self._membership.describe(rank)}: {cause}")

    def cause_of(self, error: Exception) -> Exception:
        """The error itself, whose frames would keep all that a generation had."""
        log.debug("parablock: an exchange of a generation has failed", exc_info=error)
        return bare(error)
