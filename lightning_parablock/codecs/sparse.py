"""The sparse codec: of every group of values the one of the largest magnitude, in a sign and one of two levels.

Selection by groups costs three passes over the values, a maximum among them; the largest k of a record would cost a
partial sort. It also needs fewer bits per place (5 in a group of 32, 10 in a record), so that more values fit into as
many bytes. Error feedback with decay, and values of two bits, as in SparseLoCo (arXiv 2508.15706), which selects by
top-k.
"""

from __future__ import annotations

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.codecs.compression import RECORD_SCALARS
from lightning_parablock.codecs.records import Records
from lightning_parablock.errors import ProtocolError

_LEVELS_BYTES = 4
_PACKED = 8
"""Codes that are packed together, into as many bytes as a code has bits."""
_PARTS = 2**16
"""Magnitudes are averaged in whole numbers of this part of the record's largest one: their sum is exact."""
_SMALLEST_UNIT = torch.finfo(torch.float32).tiny
_LARGEST_LEVEL = torch.finfo(torch.bfloat16).max
_MAGNITUDE_BITS = 0x7FFFFFFF


class SparseCodec(Records):
    """A record: its two levels in bfloat16, low and high, then one code per group.

    Group j of a record's n = 1024 / g groups are its scalars j, j + n, j + 2 n, ... Of each group the value of the
    largest magnitude is sent; magnitudes are compared without the last log2 g bits of their significands, and of equal
    ones the first counts. A code is the value's place in the group, from its lowest bit on, then a bit for the high
    level and one for the sign. Eight codes are packed into as many bytes as one has bits, the first one in the lowest
    bits.

    A value is high from the middle between the smallest and the largest magnitude of the record's sent values on. A
    level is the mean magnitude of its values, in 2**16 parts of the largest, each rounded half to even, and the mean
    rounded to bfloat16. Where the smallest is zero the low level is zero: nothing is sent for a group of zeros. If one
    of the record's values is not finite, both levels are NaN.

    Args:
        group: g, the scalars of which one is sent: 16, 32 or 64.
    """

    def __init__(self, group: int) -> None:
        super().__init__(RECORD_SCALARS)
        self._of = group
        self._sent = RECORD_SCALARS // group
        self._place_bits = group.bit_length() - 1
        self._code_bits = self._place_bits + 2

    @override
    def decode(self, payload: Tensor, into: Tensor) -> None:
        super().decode(payload, into)
        rest = into.numel() % RECORD_SCALARS
        if rest and self._whole_groups(into[-rest:])[rest:].abs().gt(0).any():
            raise ProtocolError(
                f"a sparse payload has values behind the end of a part of {into.numel()} scalars; if the same "
                "lightning-parablock is installed everywhere, please report this"
            )

    @override
    def _record_bytes(self, groups: int) -> int:
        return groups * (_LEVELS_BYTES + self._sent // _PACKED * self._code_bits)

    @override
    def _encode(self, values: Tensor, records: Tensor) -> None:
        places = self._largest(values)
        sent = values.gather(1, self._scalars(places))
        levels, is_high = _levels(sent.abs())
        records[:, :_LEVELS_BYTES].view(torch.bfloat16).copy_(levels)
        signs_and_levels = sent.signbit().long().mul_(2).add_(is_high.long())
        codes = signs_and_levels.bitwise_left_shift_(self._place_bits).add_(places)
        words = codes.unflatten(1, (-1, _PACKED)).bitwise_left_shift(self._shifts(codes.device)).sum(2)
        self._packed(records).copy_(_bytes_of(words)[:, :, : self._code_bits])

    @override
    def _decode(self, records: Tensor, into: Tensor) -> None:
        words = self._scratch("words", (len(records), self._sent // _PACKED), into.device, torch.int64).zero_()
        _bytes_of(words)[:, :, : self._code_bits].copy_(self._packed(records))
        codes = words.unsqueeze(2).bitwise_right_shift(self._shifts(into.device)).flatten(1)
        codes.bitwise_and_((1 << self._code_bits) - 1)
        levels = records[:, :_LEVELS_BYTES].view(torch.bfloat16).float()
        sent = torch.cat([levels, -levels], dim=1).gather(1, codes >> self._place_bits)
        into.zero_().scatter_(1, self._scalars(codes.bitwise_and_(self._of - 1)), sent)

    def _largest(self, values: Tensor) -> Tensor:
        """The place of each group's largest magnitude, shape (records, groups), int64."""
        keys = self._scratch("keys", values.shape, values.device, torch.int32)
        # Without its sign a floating-point number orders as the whole number of the same bits.
        torch.bitwise_and(values.view(torch.int32), _MAGNITUDE_BITS & -self._of, out=keys)
        from_last = torch.arange(self._of - 1, -1, -1, dtype=torch.int32, device=values.device)
        keys.bitwise_or_(from_last.repeat_interleave(self._sent))
        largest = keys.unflatten(1, (self._of, self._sent)).amax(1)
        return largest.bitwise_and_(self._of - 1).neg_().add_(self._of - 1).long()

    def _scalars(self, places: Tensor) -> Tensor:
        """Where in its record each group's place is; shapes (records, groups)."""
        return (places * self._sent).add_(torch.arange(self._sent, device=places.device))

    def _packed(self, records: Tensor) -> Tensor:
        """The codes' bytes, shape (records, packs, bytes of a pack): a view."""
        return records[:, _LEVELS_BYTES:].unflatten(1, (-1, self._code_bits))

    def _shifts(self, device: torch.device) -> Tensor:
        return torch.arange(0, _PACKED * self._code_bits, self._code_bits, device=device)


def _levels(magnitudes: Tensor) -> tuple[Tensor, Tensor]:
    """The low and the high level of each record, shape (records, 2), bfloat16, and which magnitudes are high."""
    smallest, largest = magnitudes.amin(1, keepdim=True), magnitudes.amax(1, keepdim=True)
    largest = largest + (largest - largest)  # infinity becomes NaN
    is_high = ~(magnitudes < torch.minimum(smallest * 0.5 + largest * 0.5, largest))
    unit = largest.clamp(min=_SMALLEST_UNIT)
    parts = (magnitudes / unit).mul_(_PARTS).round_()
    n_high, total = is_high.sum(1, keepdim=True), parts.sum(1, keepdim=True)
    high = (parts * is_high).sum(1, keepdim=True)
    counts = torch.cat([is_high.shape[1] - n_high, n_high], dim=1).clamp_(min=1)
    levels = (torch.cat([total - high, high], dim=1) / counts).mul_(unit / _PARTS).clamp_(max=_LARGEST_LEVEL)
    levels[:, :1].masked_fill_(smallest == 0, 0.0)
    return levels.bfloat16(), is_high


def _bytes_of(words: Tensor) -> Tensor:
    """The bytes of 64-bit words, lowest first, shape (*words.shape, 8): a view."""
    return words.view(torch.uint8).unflatten(1, (-1, 8))
