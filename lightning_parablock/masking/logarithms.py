"""Logarithms and powers to base 2 in units of 2**-16, the same integers on every machine.

Library functions for them may round differently on different machines. Here both are comparisons with, and entries of,
one table of 2**(k / 65536), which is computed in whole numbers.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
from numpy.typing import NDArray

UNITS = 1 << 16
"""Units per factor of two."""

_PRECISION_BITS = 128


@cache
def table() -> NDArray[np.float64]:
    """2**(k / 65536) for k from 0 to 65535, each rounded to the nearest float64; shape (65536,)."""
    one = 1 << _PRECISION_BITS
    root = 2 * one
    for _ in range(16):
        root = math.isqrt(root << _PRECISION_BITS)
    powers = [one]
    for _ in range(UNITS - 1):
        powers.append(powers[-1] * root >> _PRECISION_BITS)
    entries = np.array([power / one for power in powers])  # division of whole numbers rounds to nearest
    entries.setflags(write=False)
    return entries


def half_logarithms(squares: NDArray[np.float64]) -> NDArray[np.int64]:
    """log2(sqrt(square)) in units of 2**-16, rounded to nearest; squares are positive and finite.

    The square lies in [2**e, 2**(e + 1)); the odd entries of the table are where the rounded half logarithm grows by 1.
    """
    mantissas, exponents = np.frexp(squares)
    above = np.searchsorted(table()[1::2], 2 * mantissas, side="right")
    return (exponents.astype(np.int64) - 1) * (UNITS // 2) + above


def powers(logarithms: NDArray[np.int64], factor: float) -> NDArray[np.float64]:
    """factor * 2**(logarithm / 65536), the product with the table's entry rounded once."""
    return np.ldexp(factor * table()[logarithms % UNITS], (logarithms // UNITS).astype(np.int32))
