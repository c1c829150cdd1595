"""Parsing of rates and amounts with units, and formatting of numbers for people."""

from __future__ import annotations

import math
import re
from typing import Any

from lightning_parablock.checks import nearest
from lightning_parablock.errors import ConfigurationError

_BITS = {"bit": 1.0, "kbit": 1e3, "mbit": 1e6, "gbit": 1e9, "tbit": 1e12}
_BPS = {"bps": 1.0, "kbps": 1e3, "mbps": 1e6, "gbps": 1e9, "tbps": 1e12}
_BYTES = {"b": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9, "tb": 1e12}
_SECONDS = {"s": 1.0, "min": 60.0, "h": 3600.0}
_FLOPS = {"flops": 1.0, "gflops": 1e9, "tflops": 1e12, "pflops": 1e15}


def parse_bps(name: str, value: Any) -> float:
    """Parse a link's rate, in bits per second: a number, or text such as "100mbit" or "1.5 Gbit/s".

    Raises:
        ConfigurationError: the value is neither; the message names the nearest unit.
    """
    return _parse(name, value, {**_BITS, **_BPS}, "bits per second, such as 100mbit or 1gbit")


def parse_flop_per_s(name: str, value: Any) -> float:
    """Parse a number of floating-point operations per second: a number, or text such as "40tflops".

    Raises:
        ConfigurationError: the value is neither; the message names the nearest unit.
    """
    return _parse(name, value, _FLOPS, "floating-point operations per second, such as 50gflops or 100tflops")


def parse_bytes(name: str, value: Any) -> float:
    """Parse a number of bytes: a number, or text such as "500MB"; units are powers of 1000.

    Raises:
        ConfigurationError: the value is neither; the message names the nearest unit.
    """
    return _parse(name, value, _BYTES, "bytes, such as 500MB or 1.5GB")


def parse_s(name: str, value: Any) -> float:
    """Parse a number of seconds: a number, or text such as "10min" or "2h".

    Raises:
        ConfigurationError: the value is neither; the message names the nearest unit.
    """
    return _parse(name, value, _SECONDS, "seconds, such as 90, 10min or 2h")


def parse_number(name: str, value: Any) -> float:
    """Parse a number without a unit.

    Raises:
        ConfigurationError: the value is not a number.
    """
    return _parse(name, value, {}, "a number more than 0")


def readable_bps(rate_bps: float) -> str:
    """The rate in the unit that leaves up to three digits before the point."""
    unit = max((u for u in _BITS if _BITS[u] <= rate_bps), key=_BITS.__getitem__, default="bit")
    prefix = {"bit": "", "kbit": "k"}.get(unit, unit[0].upper())
    return f"{rate_bps / _BITS[unit]:.4g} {prefix}bit/s"


def readable_s(seconds: float) -> str:
    """Seconds with three digits; below a millisecond in microseconds, from two minutes on in minutes, hours, days."""
    if 0 < seconds < 1e-3:
        return f"{1e6 * seconds:.3g} us"
    for unit, unit_s in (("days", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.1f} {unit}"
    return f"{seconds:.3g} s"


def readable_bytes(size_bytes: float) -> str:
    """The size in the unit that leaves up to three digits before the point; units are powers of 1000."""
    for unit in ("B", "kB", "MB", "GB"):
        if size_bytes < 1000:
            return f"{size_bytes:.0f} B" if unit == "B" else f"{size_bytes:.1f} {unit}"
        size_bytes /= 1000
    return f"{size_bytes:.1f} TB"


def readable_number(value: float, decimals: int = 4) -> str:
    """A loss, perplexity or accuracy as people read it: ``2.3456``, ``12,346``, ``1.08 x 10^13``, ``3.20 x 10^-6``.

    Args:
        value: Any number; infinities and NaN are spelled as Python does.
        decimals: Number of digits after the decimal point, for numbers of ordinary size.
    """
    size = abs(value)
    if not math.isfinite(size) or size == 0 or 10.0**-decimals <= size < 1e4:
        return f"{value:.{decimals}f}"
    if 1e4 <= size < 1e6:
        return f"{value:,.0f}"
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa} x 10^{int(exponent)}"


def _parse(name: str, value: Any, units: dict[str, float], kind: str) -> float:
    found = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([a-z]*)(?:/s)?\s*", str(value).lower())
    if found is None:
        raise ConfigurationError(f"{name} must be {kind}, got {value!r}")
    number, unit = found[1], found[2]
    if unit and unit not in units:
        hint = f"; unit {unit!r}: {nearest(unit, [*units])}" if units else ""
        raise ConfigurationError(f"{name} must be {kind}, got {value!r}{hint}")
    try:
        rate = float(number) * units.get(unit, 1.0)
    except ValueError as error:
        raise ConfigurationError(f"{name} must be {kind}, got {value!r}") from error
    if not 0 < rate < math.inf:
        raise ConfigurationError(f"{name} must be more than 0, got {value!r}")
    return rate
