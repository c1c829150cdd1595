"""Secure sums in plain whole numbers and decimals; shares no line with the package, and is far slower."""

from __future__ import annotations

import hashlib
import hmac
from decimal import ROUND_HALF_UP, Decimal, localcontext
from fractions import Fraction

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


def key_stream(key: bytes, n_bytes: int) -> bytes:
    """AES-256 of the numbers 0, 1, 2, ... as 16 bytes each, most significant first."""
    aes = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    return b"".join(aes.update(number.to_bytes(16, "big")) for number in range(n_bytes // 16 + 1))[:n_bytes]


def derived_key(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 for 32 bytes: one round of extract, one of expand (RFC 5869)."""
    extracted = hmac.digest(salt, secret, hashlib.sha256)
    return hmac.digest(extracted, info + b"\x01", hashlib.sha256)


def wrapped(number: int, width: int) -> int:
    """The number modulo 2^(8 width), read as two's complement."""
    return int.from_bytes((number % (1 << 8 * width)).to_bytes(width, "big"), "big", signed=True)


def masked(values: list[int], place: int, keys: dict[int, bytes], width: int) -> list[int]:
    """A site's values with the streams shared with the sites at other places: added to later ones, else subtracted."""
    totals = list(values)
    for other, key in keys.items():
        stream = key_stream(key, width * len(values))
        for k in range(len(values)):
            number = int.from_bytes(stream[width * k : width * k + width], "little")
            totals[k] += number if place < other else -number
    return [wrapped(total, width) for total in totals]


def _rounded_half_log(square: Fraction) -> int:
    """65536 log2(sqrt(square)), rounded."""
    with localcontext() as context:
        context.prec = 60
        value = Decimal(square.numerator) / Decimal(square.denominator)
        return int((value.ln() / Decimal(2).ln() * 32768).to_integral_value(ROUND_HALF_UP))


def log_scales(values: np.ndarray) -> list[int]:
    """l_i of every record from exact sums of squares."""
    records = [[Fraction(float(v)) for v in values[start : start + 1024]] for start in range(0, len(values), 1024)]
    squares = [sum(v * v for v in record) for record in records]
    least = max(Fraction(sum(squares), len(values)) / 256, Fraction(1, 2**200))
    return [
        _rounded_half_log(max(Fraction(square, len(record)), least))
        for square, record in zip(squares, records, strict=True)
    ]


def step(sum_of_logs: int, n_clients: int, limit: int, width: int) -> Fraction:
    """m r / L, rounded to eight significant bits; r from the mean of the logarithms, rounded half up."""
    mean = (2 * sum_of_logs + n_clients) // (2 * n_clients)
    with localcontext() as context:
        context.prec = 60
        exact = Decimal({1: 3, 2: 16}[width]) / limit * Decimal(2) ** (Decimal(mean) / 65536)
        numerator, denominator = exact.as_integer_ratio()
    value, exponent = Fraction(numerator, denominator), 0
    while value >= 256:
        value, exponent = value / 2, exponent + 1
    while value < 128:
        value, exponent = value * 2, exponent - 1
    return Fraction(round(value)) * Fraction(2) ** exponent


def quantized(value: Fraction, size: Fraction, limit: int) -> int:
    """clamp(round half to even(value / step), -L, L); ``round`` of a fraction rounds half to even."""
    return max(-limit, min(limit, round(value / size)))
