"""The codec of each compression, but for the sparse one; what a codec is: ``records.py``."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.compression import (
    BF16,
    RECORD_SCALARS,
    Compression,
    Int4,
    Int8,
    NoCompression,
    Sparse,
    TopK,
)
from lightning_parablock.codecs.records import Codec, Records
from lightning_parablock.codecs.sparse import SparseCodec
from lightning_parablock.errors import ProtocolError

_SMALLEST_STEP = torch.finfo(torch.float32).tiny


def codec_of(compression: Compression) -> Codec:
    """Make a codec for the calling thread."""
    match compression:
        case NoCompression():
            return _Cast(torch.float32)
        case BF16():
            return _Cast(torch.bfloat16)
        case Int8(group):
            return _Int8(group, largest=127)
        case Int4(group):
            return _Int4(group, largest=7)
        case TopK(keep):
            return _TopK(max(1, round(keep * RECORD_SCALARS)))
        case Sparse(group):
            return SparseCodec(group)
        case _:
            raise TypeError(f"no codec of {compression!r}")


class _Cast(Codec):
    """Every value in another type, rounded half to even.

    In bfloat16, values within 0.2 % of the largest float32 become infinite.
    """

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


class _Integers(Records):
    """A record: the steps of its groups in bfloat16, then the values in whole numbers of steps.

    In this order, each operation rounding to float32: step = bfloat16(max(absmax / largest, 2**-126)); number =
    clamp(round half to even(value / step), -largest, largest); decoded = number * step, which is exact. A step is never
    below the smallest normal number: no group divides by zero, and groups of denormals also decode to within half a
    step. If any value of a group is not finite, its step is NaN and the whole group decodes to NaN.
    """

    def __init__(self, group: int, *, largest: int) -> None:
        super().__init__(group)
        self._largest = largest

    @override
    def _encode(self, values: Tensor, records: Tensor) -> None:
        groups = values.unflatten(1, (-1, self._group))
        numbers = torch.abs(groups, out=self._scratch("numbers", groups.shape, groups.device))
        absmax = numbers.amax(2, keepdim=True)
        absmax += absmax - absmax  # infinity becomes NaN
        # Not by a Python number: some devices multiply by its reciprocal, which rounds differently.
        steps = (absmax / absmax.new_full((), self._largest)).clamp_(min=_SMALLEST_STEP).bfloat16()
        self._steps(records, groups.shape[1]).copy_(steps.squeeze(2))
        torch.div(groups, steps.float(), out=numbers)
        numbers.round_().clamp_(-self._largest, self._largest).nan_to_num_(0.0)
        self._put(numbers.view(values.shape), self._numbers(records, groups.shape[1]))

    @override
    def _decode(self, records: Tensor, into: Tensor) -> None:
        groups = into.unflatten(1, (-1, self._group))
        self._get(self._numbers(records, groups.shape[1]), into)
        groups.mul_(self._steps(records, groups.shape[1]).float().unsqueeze(2))

    def _steps(self, records: Tensor, groups: int) -> Tensor:
        return records[:, : 2 * groups].view(torch.bfloat16)

    def _numbers(self, records: Tensor, groups: int) -> Tensor:
        return records[:, 2 * groups :].view(torch.int8)

    @abstractmethod
    def _put(self, numbers: Tensor, packed: Tensor) -> None:
        """Numbers, shape (records, scalars of each), float32, overwritten, into the bytes of the records."""

    @abstractmethod
    def _get(self, packed: Tensor, into: Tensor) -> None:
        """The inverse."""


class _Int8(_Integers):
    @override
    def _record_bytes(self, groups: int) -> int:
        return groups * (2 + self._group)

    @override
    def _put(self, numbers: Tensor, packed: Tensor) -> None:
        packed.copy_(numbers)

    @override
    def _get(self, packed: Tensor, into: Tensor) -> None:
        into.copy_(packed)


class _Int4(_Integers):
    """A byte holds low + 16 high of a number of the record's first half and one of its second, each from -7 to 7."""

    @override
    def _record_bytes(self, groups: int) -> int:
        return groups * (2 + self._group // 2)

    @override
    def _put(self, numbers: Tensor, packed: Tensor) -> None:
        low, high = numbers.chunk(2, dim=1)
        packed.copy_(low.add_(high, alpha=16))

    @override
    def _get(self, packed: Tensor, into: Tensor) -> None:
        low, high = into.chunk(2, dim=1)
        torch.mul(packed, 1 / 16, out=high).round_()  # low / 16 is below a half
        low.copy_(packed).sub_(high, alpha=16)


class _TopK(Records):
    """A record: the kept values in bfloat16, largest magnitude first, then their places in the record in int16.

    Magnitudes are compared as sent, in bfloat16; of equal ones the first is kept. Values that are not finite count as
    larger than all that are, so they are kept.
    """

    def __init__(self, kept: int) -> None:
        super().__init__(RECORD_SCALARS)
        self._kept = kept

    @override
    def _record_bytes(self, groups: int) -> int:
        return groups * 4 * self._kept

    @override
    def _encode(self, values: Tensor, records: Tensor) -> None:
        shape, device = values.shape, values.device
        bits = self._scratch("bits", shape, device, torch.bfloat16).copy_(values).view(torch.int16)
        # Without its sign a floating-point number orders as the whole number of the same bits.
        rank = self._scratch("rank", shape, device, torch.int32).copy_(bits).bitwise_and_(0x7FFF).mul_(RECORD_SCALARS)
        rank -= torch.arange(RECORD_SCALARS, dtype=torch.int32, device=device)
        places = rank.topk(self._kept, dim=1).indices
        kept, where = self._views(records)
        kept.copy_(bits.gather(1, places))
        where.copy_(places)

    @override
    def _decode(self, records: Tensor, into: Tensor) -> None:
        kept, where = self._views(records)
        lowest, highest = where.aminmax()
        if int(lowest) < 0 or int(highest) >= RECORD_SCALARS:  # on a GPU it would end the process
            raise ProtocolError(
                f"a top-k payload names scalars {int(lowest)} to {int(highest)} of a record of {RECORD_SCALARS}"
            )
        into.zero_().scatter_(1, where.long(), kept.view(torch.bfloat16).float())

    def _views(self, records: Tensor) -> tuple[Tensor, Tensor]:
        kept_bytes = 2 * self._kept
        return records[:, :kept_bytes].view(torch.int16), records[:, kept_bytes:].view(torch.int16)
