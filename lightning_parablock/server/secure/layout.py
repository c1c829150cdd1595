"""What stands where in a payload: a body, and behind it the facts of its records and of the exchange.

    bytes            content
    body             values in the ring, or what a codec has made of a commit; filled up with zeros to a multiple of 4
    4 per record     l_i, summed over the clients of a site or over all of them; int32, in Z_2^32 while masked
    8                n_i, and the numbers of clients and of sites that have trained, likewise

Facts are not part of every payload: see :mod:`lightning_parablock.server.secure.aggregator`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_parablock.masking.scales import n_records

WORD_BYTES = 4
N_COUNTS = 2
"""Whole numbers of the exchange: the sum of the weights, and who has trained: clients plus ``A_SITE`` times sites."""
A_SITE = 1 << 16
"""One sum has at most 256 clients, and as many sites."""


@dataclass(frozen=True)
class Layout:
    """Of one payload.

    Attributes:
        body_bytes: Length of the body.
        n_records: Records whose facts are in it; 0 for none, also of the exchange.
    """

    body_bytes: int
    n_records: int

    @property
    def size_bytes(self) -> int:
        """Length of the payload."""
        return self._first_fact + WORD_BYTES * (self.n_records + N_COUNTS if self.n_records else 0)

    @property
    def _first_fact(self) -> int:
        return -(-self.body_bytes // WORD_BYTES) * WORD_BYTES

    def body(self, payload: Tensor) -> Tensor:
        """The body's bytes, shape (body_bytes,): a view."""
        return payload[: self.body_bytes]

    def facts(self, payload: Tensor) -> Tensor:
        """The sums of l_i, then those of the counts, shape (n_records + 2,) or (0,), int32: a view."""
        return payload[self._first_fact : self.size_bytes].view(torch.int32)

    def fill_up(self, payload: Tensor) -> None:
        """Write the zeros behind the body: a buffer is used again, and must not show what it held before."""
        payload[self.body_bytes : self._first_fact].zero_()


def layout_of(body_bytes: int, scalars: int, *, has_facts: bool) -> Layout:
    """The layout of a part's payload.

    Args:
        body_bytes: Length of its body.
        scalars: Length of the part.
        has_facts: Whether the facts travel with it.
    """
    return Layout(body_bytes, n_records(scalars) if has_facts else 0)


def records_of(part: slice) -> slice:
    """The records of a part, which begins where a record does."""
    first = n_records(part.start)
    return slice(first, first + n_records(part.stop - part.start))
