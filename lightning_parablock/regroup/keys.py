"""Exchanges by key, and when on the common clock they fall due."""

from __future__ import annotations

Key = tuple[int, int]
"""Round and block: names one exchange. Keys are ordered as exchanges are: by round, then by block."""

BEFORE_ALL: Key = (-1, -1)
"""Older than every exchange."""


def newest_due_at_start(round_index: int, delay_rounds: int, delay_rest_steps: int) -> int:
    """The newest round whose commits are merged before a round begins; negative if there is none.

    Args:
        round_index: The round that begins.
        delay_rounds: q of delay_steps = qK + r.
        delay_rest_steps: r.
    """
    return round_index - 2 - delay_rounds if delay_rest_steps else round_index - 1 - delay_rounds
