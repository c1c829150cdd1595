"""Whole numbers of a fixed width that wrap around: the ring Z_2^(8B), in which masks cancel and sums are exact."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_parablock.errors import ConfigurationError

_DTYPES = {1: torch.int8, 2: torch.int16, 4: torch.int32}
_MOST_CLIENTS = {1: 16, 2: 256, 4: 256}


@dataclass(frozen=True)
class Ring:
    """Integers of B bytes, little-endian, read as two's complement.

    Attributes:
        bytes_per_value: B: 1 or 2 for the values of a block, 4 for scales and weights.
    """

    bytes_per_value: int

    def __post_init__(self) -> None:
        if self.bytes_per_value not in _DTYPES:
            raise ConfigurationError(f"a masked value has 1, 2 or 4 bytes, not {self.bytes_per_value}")

    @property
    def dtype(self) -> torch.dtype:
        """Signed type of the same width."""
        return _DTYPES[self.bytes_per_value]

    @property
    def most_clients(self) -> int:
        """Clients whose values one sum may hold; with more of them each would have too few steps left."""
        return _MOST_CLIENTS[self.bytes_per_value]

    def limit(self, n_clients: int) -> int:
        """L: the largest magnitude of one client's value such that the sum over all clients does not wrap around.

        Raises:
            ConfigurationError: too many clients for this width.
        """
        if not 1 <= n_clients <= self.most_clients:
            raise ConfigurationError(
                f"secure aggregation sums at most {self.most_clients} clients in {self.bytes_per_value} byte(s) per "
                f"value, and an exchange has {n_clients}; take bytes_per_value=2, or a smaller cohort"
            )
        return (2 ** (8 * self.bytes_per_value - 1) - 1) // n_clients

    def add(self, into: Tensor, values: Tensor) -> None:
        """into += values, modulo 2^(8B). Both of this ring's type, contiguous, equally long, on the host."""
        total = self.unsigned(into)
        np.add(total, self.unsigned(values), out=total)

    def subtract(self, into: Tensor, values: Tensor) -> None:
        """into -= values, modulo 2^(8B); the tensors as in :meth:`add`."""
        total = self.unsigned(into)
        np.subtract(total, self.unsigned(values), out=total)

    def signed(self, message: Tensor) -> Tensor:
        """The integers in a message's bytes, shape (bytes,), uint8: a view, shape (bytes / B,)."""
        return message.view(self.dtype)

    def unsigned(self, values: Tensor) -> NDArray[np.unsignedinteger]:
        """A view of the same memory. NumPy's unsigned arithmetic is defined to wrap around; C's signed one is not.

        Raises:
            TypeError: the tensor has another type, or holes.
        """
        if values.dtype != self.dtype or not values.is_contiguous():
            raise TypeError(f"expected contiguous values of {self.dtype}, got {values.dtype}")
        return values.numpy().view(f"<u{self.bytes_per_value}")
