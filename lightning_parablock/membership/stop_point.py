"""Agreement, without a collective, on the batch at whose end all ranks stop together.

A collective per batch would make every rank as slow as the slowest. Instead, a rank that wants to stop, or hears of
another that does, pledges not to pass the end of its current batch before it knows the pledges of all. The stop point
is the latest of them. Ranks that are behind it can always reach it: all merges and collectives before it have been
passed by the rank that pledged it, so every other rank has done its part in them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable

_POLL_S = 0.1


class StopPoint:
    """One rank's view of the agreement; it may be reached several times in a run.

    Args:
        peers: Other ranks.
        tell: Sends this rank's pledge to all of them; must not block.

    Methods may be called from any thread, :meth:`request` from a signal handler.
    """

    def __init__(self, peers: Iterable[int], tell: Callable[[int], None]) -> None:
        self._tell = tell
        self._pledges: dict[int, int | None] = dict.fromkeys(peers)
        self._passed = self._reached = 0  # batches since the start of the run
        self._pledge: int | None = None
        self._is_wanted = False
        self._changed = threading.Condition()

    def request(self) -> None:
        """Ask all ranks to stop at a common batch; takes effect at the end of this rank's batch."""
        self._is_wanted = True

    def hear(self, rank: int, pledge: int) -> None:
        """Record a peer's pledge, and make this rank's own: its training thread may be waiting for that peer."""
        with self._changed:
            if pledge > self._reached:
                self._pledges[rank] = pledge
                self._make_pledge(self._passed + 1)
            self._changed.notify_all()

    def pass_batch(self, check: Callable[[], object]) -> bool:
        """Pass the end of a batch; waits for the pledges of all ranks if any of them wants to stop.

        Args:
            check: Called several times per second while this rank waits; raises if a peer is lost.

        Returns:
            Whether this is where all ranks stop.
        """
        with self._changed:
            self._passed += 1
            if self._is_wanted:
                self._make_pledge(self._passed)
            while self._pledge is not None and None in self._pledges.values():
                self._changed.wait(_POLL_S)
                check()
            if self._pledge is None or self._passed < max([self._pledge, *self._pledges_of_peers()]):
                return False
            self._reached, self._pledge, self._is_wanted = self._passed, None, False
            self._pledges = dict.fromkeys(self._pledges)
            return True

    def _make_pledge(self, batch: int) -> None:
        if self._pledge is None:
            self._pledge = batch
            self._tell(batch)

    def _pledges_of_peers(self) -> list[int]:
        return [pledge for pledge in self._pledges.values() if pledge is not None]
