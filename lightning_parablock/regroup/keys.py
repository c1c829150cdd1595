"""Exchanges by key."""

from __future__ import annotations

Key = tuple[int, int]
"""Round and block: names one exchange. Keys are ordered as exchanges are: by round, then by block."""

BEFORE_ALL: Key = (-1, -1)
"""Older than every exchange."""
