"""The one model of a rank, shown as any of its clients sees it, without a copy of the model.

Whenever a block is not being trained, its parameters have the held value of the client that is loaded. The committed
value W of a block is stored beside the model only while the model shows something else in its place: the block is being
trained, or has a delta in flight, or another client of this rank is at another version.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from lightning_parablock.blocks.flat import FlatBlocks
from lightning_parablock.federation.client import Client, Tag
from lightning_parablock.settings import InFlightValue


class HeldModel:
    """Keeps the parameters of one module equal to the held values of one of several clients.

    Args:
        flat: The module's blocks; their present values are version 0 of W on every client.
        in_flight_value: "local" or "anchor".
    """

    def __init__(self, flat: FlatBlocks, in_flight_value: InFlightValue) -> None:
        self.flat = flat
        self._in_flight_value: InFlightValue = in_flight_value
        self._live: list[Tag | None] = [(0, ()) for _ in flat.blocks]
        self._stored: list[dict[int, Tensor]] = [{} for _ in flat.blocks]
        self._needed: list[set[int]] = [{0} for _ in flat.blocks]

    def committed(self, client: Client, block: int) -> Tensor:
        """W[b] of the client, shape (numel,). Read-only: it may be the stored value itself."""
        version = client.versions[block]
        if version in self._stored[block]:
            return self._stored[block][version]
        assert self._live[block] == (version, ()), "a version that a client needs is neither stored nor in the model"
        return self.flat.pack(block)

    def held(self, client: Client, block: int) -> Tensor:
        """held_i(b) of the client, shape (numel,). Read-only."""
        return client.held(block, self.committed(client, block), self._in_flight_value)

    def add_version(self, block: int, version: int, value: Tensor) -> None:
        """Store a commit, shape (numel,); this object takes over the tensor."""
        self._keep(block)
        self._stored[block][version] = self.flat.as_held(block, value)

    def release(self, needed: Iterable[Sequence[int]]) -> None:
        """Keep W of no other versions than these, from now on and until the next call.

        Args:
            needed: The versions of all blocks, once for each client whose values may be asked for.
        """
        self._needed = [set(versions) for versions in zip(*needed, strict=True)]
        for stored, versions in zip(self._stored, self._needed, strict=True):
            for version in stored.keys() - versions:
                del stored[version]

    def show(self, client: Client, block: int) -> None:
        """Make the block's parameters held_i(b)."""
        tag = client.tag(block, self._in_flight_value)
        if self._live[block] != tag:
            self._keep(block)
            self.flat.unpack(block, self.held(client, block))
            self._live[block] = tag
        self._drop_unneeded(block)

    def show_all(self, client: Client) -> None:
        """Load a client: every block's parameters become its held values."""
        for block in range(len(self.flat.blocks)):
            self.show(client, block)

    def begin_training(self, client: Client, block: int) -> Tensor:
        """Give the block's parameters to the optimizer; returns their value s, shape (numel,).

        Read-only: where the client has nothing in flight on the block it is the stored W itself.
        """
        self.show(client, block)
        self._keep(block)
        version, own = self._live[block] or (None, ())
        self._live[block] = None
        return self._stored[block][version] if version is not None and not own else self.flat.pack(block)

    @torch.no_grad()
    def shift(self, block: int, difference: Tensor) -> None:
        """X[b] += difference, shape (numel,), for the block that is being trained, after its client has merged."""
        self.flat.unpack(block, self.flat.pack(block) + difference)
        self._drop_unneeded(block)

    def show_committed(self, client: Client) -> dict[int, Tensor]:
        """Make every block's parameters W[b]; returns what :meth:`undo` needs to put them back, bit for bit."""
        replaced: dict[int, Tensor] = {}
        for block, live in enumerate(self._live):
            if live != (client.versions[block], ()):
                replaced[block] = self.flat.pack(block)
                self.flat.unpack(block, self.committed(client, block))
        return replaced

    def undo(self, replaced: dict[int, Tensor]) -> None:
        """Put back what :meth:`show_committed` replaced."""
        for block, value in replaced.items():
            self.flat.unpack(block, value)

    def _keep(self, block: int) -> None:
        """Store the version that the parameters show, before they change, where some client still needs it."""
        live = self._live[block]
        if live is not None and not live[1] and live[0] not in self._stored[block] and live[0] in self._needed[block]:
            self._stored[block][live[0]] = self.flat.pack(block)

    def _drop_unneeded(self, block: int) -> None:
        """Drop the versions that no client needs, and the one that the parameters themselves show."""
        needed, live = self._needed[block], self._live[block]
        for version in [v for v in self._stored[block] if v not in needed or live == (v, ())]:
            del self._stored[block][version]
