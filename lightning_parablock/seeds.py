"""Derived seeds: one for each purpose, all derived from the run's seed."""

from __future__ import annotations

import hashlib


def derive_seed(seed: int, *labels: object) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(7, "client", 3)``; the same on every machine."""
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
