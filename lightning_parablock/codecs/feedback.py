"""Error feedback: what a lossy codec left out of one message is added to the next one (arXiv 1901.09847).

For each client and block: u = Delta + beta e; c = Q(u) is sent; e = u - c. beta is the compression's decay: with 1, the
sum of what was sent over all visits of the block plus e equals the sum of the deltas, to rounding. e is kept in host
memory.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_parablock.codecs.codec import codec_of
from lightning_parablock.codecs.compression import Compression

ClientBlock = tuple[int, int]
"""A client and a block that it trains."""


@dataclass(frozen=True)
class Residual:
    """e of one client and block around one exchange, shape (numel of the block,), float32, on the host.

    Attributes:
        before: Its value before the exchange; None for zero.
        after: Its value after it, written part by part as the delta is encoded.
    """

    before: Tensor | None
    after: Tensor


class Residuals:
    """e for every client of this rank and every block it has trained; used by one thread.

    For an exchange in flight the value before it is kept, too: after a stop what was in flight is submitted again.
    """

    def __init__(self) -> None:
        self._now: dict[ClientBlock, Tensor] = {}
        self._in_flight: dict[tuple[int, ClientBlock], Residual] = {}

    def begin(self, round_index: int, client: int, block: int, numel: int) -> Residual:
        """The residual of an exchange that is about to be submitted."""
        key = (client, block)
        residual = Residual(self._now.get(key), torch.empty(numel, dtype=torch.float32))
        self._now[key] = residual.after
        self._in_flight[round_index, key] = residual
        return residual

    def settle(self, round_index: int) -> None:
        """The exchanges of a round are over: the values before them are not needed any more."""
        self._in_flight = {key: residual for key, residual in self._in_flight.items() if key[0] != round_index}

    def state(self) -> list[list[Any]]:
        """[client, block, e] after the settled rounds, without entries where e is zero."""
        state: dict[ClientBlock, Tensor | None] = dict(self._now)
        for (_, key), residual in sorted(self._in_flight.items(), key=lambda item: item[0], reverse=True):
            state[key] = residual.before
        return [[*key, tensor] for key, tensor in state.items() if tensor is not None]

    def load_state(self, state: Iterable[Iterable[Any]]) -> None:
        """Restore :meth:`state`; nothing may be in flight."""
        self._now = {(client, block): tensor for client, block, tensor in state}


class Coder:
    """A codec with its error feedback and buffers, for one thread.

    Args:
        compression: Which codec.
    """

    def __init__(self, compression: Compression) -> None:
        self.codec = codec_of(compression)
        self.is_lossy = compression.is_lossy
        self._decay = compression.feedback_decay
        self._scratch: dict[tuple[str, torch.device], Tensor] = {}
        self._payload = torch.empty(0, dtype=torch.uint8)

    def encode_delta(self, delta: Tensor, residual: Residual | None, part: slice, payload: Tensor) -> None:
        """Write a part of a client's delta, with what earlier exchanges left out of it.

        Args:
            delta: Shape (numel of the block,), float32, on any device.
            residual: Its part is read and written; None where nothing is left out or the client has no weight.
            part: Scalars of the block.
            payload: The message's bytes, shape (payload_bytes(part),), uint8.
        """
        values = delta[part]
        if residual is None:
            self.codec.encode(values, payload)
            return
        wanted = self.scratch("wanted", values.numel(), payload.device).copy_(values)
        if residual.before is not None:
            self.add_left_out(wanted, residual.before[part].to(payload.device))
        self.codec.encode(wanted, payload)
        residual.after[part] = wanted.sub_(self.decode(payload, values.numel()))

    def add_left_out(self, values: Tensor, left_out: Tensor) -> Tensor:
        """Add what earlier messages left out, as far as it has not decayed.

        Args:
            values: Shape (scalars,), float32; overwritten.
            left_out: e, of the same shape, on the same device.

        Returns:
            ``values``.
        """
        if self._decay != 1:
            into = self.scratch("left out", values.numel(), values.device)
            left_out = torch.mul(left_out, self._decay, out=into)
        return values.add_(left_out)

    def as_received(self, delta: Tensor, residual: Residual | None, part: slice) -> Tensor:
        """What a server on this rank receives of a part of a delta: the same bits as from a message, on the host.

        Arguments and result are those of :meth:`encode_delta` and :meth:`decode`.
        """
        if residual is None:
            return delta[part].cpu()
        scalars = part.stop - part.start
        payload = self._bytes(self.codec.payload_bytes(scalars))
        self.encode_delta(delta, residual, part, payload)
        return self.decode(payload, scalars)

    def decode(self, payload: Tensor, scalars: int) -> Tensor:
        """The values of a payload, shape (scalars,): a view of it, or of a buffer that the next call overwrites."""
        if not self.is_lossy:
            return payload.view(torch.float32)
        into = self.scratch("decoded", scalars, payload.device)
        self.codec.decode(payload, into)
        return into

    def _bytes(self, size_bytes: int) -> Tensor:
        if self._payload.numel() < size_bytes:
            self._payload = torch.empty(size_bytes, dtype=torch.uint8)
        return self._payload[:size_bytes]

    def scratch(self, name: str, scalars: int, device: torch.device) -> Tensor:
        """A buffer of this thread, kept from call to call: shape (scalars,), values undefined."""
        held = self._scratch.get((name, device))
        if held is None or held.numel() < scalars:
            # Never the default type: Lightning changes it for all threads while a bf16-true model computes.
            held = self._scratch[name, device] = torch.empty(scalars, dtype=torch.float32, device=device)
        return held[:scalars]
