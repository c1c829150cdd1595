"""Codecs: a part of a delta or commit to bytes and back.

Blocks are cut into shards and chunks at multiples of 1024 scalars from the block's start. A payload is a sequence of
records, one per 1024 scalars, and a record depends on its own scalars alone: no cut changes a bit. The last record may
be short; its last group is padded with zeros. Every operation is elementwise, a maximum over a group, or exact: none
depends on the order of a sum.

Error feedback (arXiv 1901.09847) is up to the caller: u = value + e; send Q(u); e = u - what Q(u) decodes to.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.compression import RECORD_SCALARS

PIECE_SCALARS = 256 * RECORD_SCALARS
"""Scalars encoded at a time, 1 MiB: smaller pieces need more calls, larger ones more scratch and cache."""


class Codec(ABC):
    """Converts float32 values to bytes and back. One instance per thread: it owns scratch, which grows to one piece."""

    @abstractmethod
    def payload_bytes(self, scalars: int) -> int:
        """Length in bytes of the payload for this number of scalars."""

    @abstractmethod
    def encode(self, values: Tensor, payload: Tensor) -> None:
        """Write the values' payload.

        Args:
            values: Shape (n,), float32, contiguous, n >= 1; not changed.
            payload: Shape (payload_bytes(n),), uint8, contiguous, on the same device, overwritten; its first byte is at
                a multiple of 4 in its storage.
        """

    @abstractmethod
    def decode(self, payload: Tensor, into: Tensor) -> None:
        """Read a payload.

        Args:
            payload: As :meth:`encode` wrote it.
            into: Shape (n,), float32, contiguous, overwritten.

        Raises:
            ProtocolError: no values are encoded like this.
        """


class Records(Codec):
    """Cuts a part into pieces of whole records, and the rest into one short record of whole groups."""

    def __init__(self, group: int) -> None:
        self._group = group
        self._kept_scratch: dict[str, Tensor] = {}

    @override
    def payload_bytes(self, scalars: int) -> int:
        records, rest = divmod(scalars, RECORD_SCALARS)
        whole = records * self._record_bytes(RECORD_SCALARS // self._group)
        return whole + self._record_bytes(-(-rest // self._group))

    @override
    def encode(self, values: Tensor, payload: Tensor) -> None:
        for piece, records in self._pieces(values, payload):
            whole = self._whole_groups(piece)
            if whole is not piece:
                whole.zero_()[: piece.numel()] = piece
            self._encode(whole.view(len(records), -1), records)

    @override
    def decode(self, payload: Tensor, into: Tensor) -> None:
        for piece, records in self._pieces(into, payload):
            whole = self._whole_groups(piece)
            self._decode(records, whole.view(len(records), -1))
            if whole is not piece:
                piece.copy_(whole[: piece.numel()])

    def _pieces(self, values: Tensor, payload: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """Values, shape (scalars,), with their records, shape (records, bytes of each)."""
        scalars = values.numel()
        whole = scalars - scalars % RECORD_SCALARS
        for start, stop in pairwise([*range(0, whole, PIECE_SCALARS), whole, scalars]):
            if start < stop:
                piece = payload[self.payload_bytes(start) : self.payload_bytes(stop)]
                yield values[start:stop], piece.view(-(-(stop - start) // RECORD_SCALARS), -1)

    def _whole_groups(self, piece: Tensor) -> Tensor:
        """The piece itself, or scratch for it with its last group whole."""
        short = -piece.numel() % self._group
        return self._scratch("tail", (piece.numel() + short,), piece.device) if short else piece

    def _scratch(
        self, name: str, shape: Sequence[int], device: torch.device, dtype: torch.dtype = torch.float32
    ) -> Tensor:
        """Uninitialized memory; what was taken under this name before is overwritten."""
        numel = math.prod(shape)
        kept = self._kept_scratch.get(name)
        if kept is None or kept.numel() < numel or kept.device != device:
            kept = self._kept_scratch[name] = torch.empty(numel, dtype=dtype, device=device)
        return kept[:numel].view(shape)

    @abstractmethod
    def _record_bytes(self, groups: int) -> int:
        """Length in bytes of a record of this number of groups."""

    @abstractmethod
    def _encode(self, values: Tensor, records: Tensor) -> None:
        """Values, shape (records, scalars of each), into records, shape (records, bytes of each)."""

    @abstractmethod
    def _decode(self, records: Tensor, into: Tensor) -> None:
        """The inverse."""
