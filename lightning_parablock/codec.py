"""Codecs: the values of a part of a block to bytes and back (METHOD: "Around it")."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.settings import (
    BF16,
    RECORD_SCALARS,
    Compression,
    Int4,
    Int8,
    NoCompression,
    TopK,
)


class Codec(ABC):
    """Turns float32 values to bytes and back. One instance a thread: it owns its scratch."""

    @abstractmethod
    def payload_bytes(self, scalars: int) -> int:
        """Bytes that the payload of so many scalars has."""

    @abstractmethod
    def encode(self, values: Tensor, payload: Tensor) -> None:
        """values (n,) fp32 -> payload (payload_bytes(n),) uint8, any n >= 1."""

    @abstractmethod
    def decode(self, payload: Tensor, into: Tensor) -> None:
        """Payload -> into (n,) fp32, overwritten."""


class _Cast(Codec):
    def __init__(self, dtype: torch.dtype) -> None:
        self._dtype = dtype

    @override
    def payload_bytes(self, scalars: int) -> int:
        return scalars * self._dtype.itemsize

    @override
    def encode(self, values: Tensor, payload: Tensor) -> None:
        payload.view(self._dtype).copy_(values)

    @override
    def decode(self, payload: Tensor, into: Tensor) -> None:
        into.copy_(payload.view(self._dtype))


class _Records(Codec):
    """Payload = records of 1024 scalars each, the last one perhaps of fewer groups."""

    def __init__(self, group: int) -> None:
        self._group = group

    @override
    def payload_bytes(self, scalars: int) -> int:
        records, rest = divmod(scalars, RECORD_SCALARS)
        return records * self._record_bytes(RECORD_SCALARS) + self._record_bytes(self._padded(rest))

    @override
    def encode(self, values: Tensor, payload: Tensor) -> None:
        whole, cut, rest = self._cut(values, payload)
        if whole:
            self._encode(values[:whole].view(-1, RECORD_SCALARS), payload[:cut].view(whole // RECORD_SCALARS, -1))
        if rest:
            padded = values.new_zeros(self._padded(rest))
            padded[:rest] = values[whole:]
            self._encode(padded.view(1, -1), payload[cut:].view(1, -1))

    @override
    def decode(self, payload: Tensor, into: Tensor) -> None:
        whole, cut, rest = self._cut(into, payload)
        if whole:
            self._decode(payload[:cut].view(whole // RECORD_SCALARS, -1), into[:whole].view(-1, RECORD_SCALARS))
        if rest:
            padded = into.new_zeros(self._padded(rest))
            self._decode(payload[cut:].view(1, -1), padded.view(1, -1))
            into[whole:] = padded[:rest]

    def _cut(self, values: Tensor, payload: Tensor) -> tuple[int, int, int]:
        records, rest = divmod(values.numel(), RECORD_SCALARS)
        return records * RECORD_SCALARS, records * self._record_bytes(RECORD_SCALARS), rest

    def _padded(self, rest: int) -> int:
        return -(-rest // self._group) * self._group

    @abstractmethod
    def _record_bytes(self, scalars: int) -> int: ...

    @abstractmethod
    def _encode(self, values: Tensor, records: Tensor) -> None: ...

    @abstractmethod
    def _decode(self, records: Tensor, into: Tensor) -> None: ...


class _Integers(_Records):
    def __init__(self, group: int, largest: int, values_a_byte: int) -> None:
        super().__init__(group)
        self._largest, self._values_a_byte = largest, values_a_byte

    @override
    def _record_bytes(self, scalars: int) -> int:
        return 2 * (scalars // self._group) + scalars // self._values_a_byte

    @override
    def _encode(self, values: Tensor, records: Tensor) -> None:
        groups = values.unflatten(1, (-1, self._group))
        scales, digits = self._views(records, groups.shape[1])
        largest = groups.abs().amax(2)
        finite_or_nan = largest + (largest - largest)
        scales.copy_((finite_or_nan / self._largest).clamp_(min=torch.finfo(torch.float32).tiny))
        steps = (groups / scales.float().unsqueeze(2)).round_().clamp_(-self._largest, self._largest).view_as(values)
        if self._values_a_byte == 2:
            low, high = steps.chunk(2, dim=1)
            steps = low + high * 16
        digits.copy_(steps)

    @override
    def _decode(self, records: Tensor, into: Tensor) -> None:
        groups = into.unflatten(1, (-1, self._group))
        scales, digits = self._views(records, groups.shape[1])
        if self._values_a_byte == 2:
            low, high = into.chunk(2, dim=1)
            high.copy_(digits).div_(16).round_()
            low.copy_(digits).sub_(high * 16)
        else:
            into.copy_(digits)
        groups.mul_(scales.float().unsqueeze(2))

    def _views(self, records: Tensor, groups: int) -> tuple[Tensor, Tensor]:
        return records[:, : 2 * groups].view(torch.bfloat16), records[:, 2 * groups :].view(torch.int8)


class _TopK(_Records):
    def __init__(self, kept: int) -> None:
        super().__init__(RECORD_SCALARS)
        self._kept = kept

    @override
    def _record_bytes(self, scalars: int) -> int:
        return 4 * self._kept if scalars else 0

    @override
    def _encode(self, values: Tensor, records: Tensor) -> None:
        bits = values.bfloat16().view(torch.int16).int()
        places = torch.arange(RECORD_SCALARS, device=values.device, dtype=torch.int32)
        keys = (bits & 0x7FFF) * 2048 + (RECORD_SCALARS - 1 - places) * 2 + (bits < 0)
        best = keys.topk(self._kept, dim=1).values
        kept, indices = self._views(records)
        kept.copy_(best >> 11 | best << 15)
        indices.copy_(RECORD_SCALARS - 1 - (best >> 1 & RECORD_SCALARS - 1))

    @override
    def _decode(self, records: Tensor, into: Tensor) -> None:
        kept, indices = self._views(records)
        into.zero_().scatter_(1, indices.long(), kept.view(torch.bfloat16).float())

    def _views(self, records: Tensor) -> tuple[Tensor, Tensor]:
        return records[:, : 2 * self._kept].view(torch.int16), records[:, 2 * self._kept :].view(torch.int16)


def codec_of(compression: Compression) -> Codec:
    """A codec of its own for the calling thread."""
    match compression:
        case NoCompression():
            return _Cast(torch.float32)
        case BF16():
            return _Cast(torch.bfloat16)
        case Int8(group):
            return _Integers(group, 127, 1)
        case Int4(group):
            return _Integers(group, 7, 2)
        case TopK(keep):
            return _TopK(max(1, round(keep * RECORD_SCALARS)))
        case _:
            raise TypeError(f"no codec of {compression!r}")
