"""Which parts of a range have been taken: each may be taken once."""

from __future__ import annotations

from bisect import bisect_left


class Spent:
    """A set of whole numbers, as ranges that neither touch nor overlap."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._stops: list[int] = []

    @property
    def total(self) -> int:
        """How many numbers have been taken."""
        return sum(self._stops) - sum(self._starts)

    def take(self, start: int, stop: int) -> bool:
        """Take a range; False, and nothing is taken, where a part of it has been taken before."""
        if start >= stop:
            return True
        at = bisect_left(self._stops, start)  # the first range that may touch this one
        touches = at < len(self._stops) and self._stops[at] == start
        after = at + touches
        if after < len(self._starts) and self._starts[after] < stop:
            return False
        meets = after < len(self._starts) and self._starts[after] == stop
        new_start = self._starts[at] if touches else start
        new_stop = self._stops[after] if meets else stop
        self._starts[at : after + meets] = [new_start]
        self._stops[at : after + meets] = [new_stop]
        return True
