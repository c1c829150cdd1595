"""Derived seeds: one for each purpose, all derived from the run's seed."""

from __future__ import annotations

import hashlib


class LocalSeed:
    """The seed of all that the clients of a site draw for themselves, which is the run's unless there is a salt.

    Attributes:
        salt: Mixed in; empty for nothing. Set before anything is drawn.
    """

    def __init__(self) -> None:
        self.salt = b""

    def of(self, seed: int) -> int:
        """The seed, given that of the run."""
        return derive_seed(seed, "salt", self.salt.hex()) if self.salt else seed


def derive_seed(seed: int, *labels: object) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive_seed(7, "client", 3)``; the same on every machine."""
    text = "/".join(map(str, (seed, *labels)))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
