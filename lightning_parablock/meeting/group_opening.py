"""Connecting the ranks that have met; a rank that fails, or does not begin, ends the wait of the others."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ParaBlockError, PeerLostError, PeerTimeoutError
from lightning_parablock.meeting.introductions import Meeting, several
from lightning_parablock.meeting.rendezvous import one_line
from lightning_parablock.system.limited_wait import LimitedWait
from lightning_parablock.system.looked_after import run_looked_after

_LOOK_S = 0.5
_AT_LEAST_S = 30.0


def open_together(action: Callable[[], object], meeting: Meeting, store: Store, limit_s: float) -> None:
    """Open the connections of the ranks, with reports; ``action`` alone would wait long and silently for a late rank.

    Args:
        action: Opens the connections; runs on its own thread, which is abandoned if it cannot end.
        meeting: Ranks of the run.
        store: Store of the ranks; not the one that ``action`` uses, which blocks.
        limit_s: Seconds left; at least 30 are used, since all ranks are present.

    Raises:
        PeerLostError: this rank or another one could not open its connections.
        PeerTimeoutError: the connections were not open within the limit.
    """
    wait = LimitedWait(max(limit_s, _AT_LEAST_S))
    progress = _Progress(store, meeting)
    progress.note("began")
    failure = run_looked_after(action, lambda: progress.look(wait), "parablock-opening")
    if failure is not None:
        raise progress.failed(failure) from failure
    progress.note("opened")


class _Progress:
    """Progress of the ranks, recorded in the store."""

    def __init__(self, store: Store, meeting: Meeting) -> None:
        self._store, self._meeting = PrefixStore(f"opening/{meeting.run_id}", store), meeting
        self._look_s = 0.0

    def note(self, step: str) -> None:
        self._store.set(f"{step} {self._meeting.rank}", "1")

    def failed(self, error: BaseException) -> BaseException:
        """Tell the other ranks of the failure; returns the error to raise."""
        own = self._meeting.ranks[self._meeting.rank]
        message = f"{own.describe()} could not connect to the other ranks ({one_line(error)[:300]})"
        with contextlib.suppress(DistError):  # the process that hosts the store has ended: the others notice it, too
            self._store.compare_set("failed", "", message)
            time.sleep(_LOOK_S)  # the store may end with this process; this is how often the others look
        ours = isinstance(error, ParaBlockError) or not isinstance(error, RuntimeError)
        return error if ours else self._lost(message)

    def look(self, wait: LimitedWait) -> None:
        """Raise an error for a failed or late rank; looks at the store only from time to time."""
        if time.monotonic() < self._look_s:
            return
        self._look_s = time.monotonic() + _LOOK_S / 2
        try:
            if self._store.check(["failed"]):
                raise self._lost(self._store.get("failed").decode())
            if wait.is_over:
                raise PeerTimeoutError(
                    f"{self._late()} not connected within {wait.limit_s:.0f} s; the ranks have met, but each must "
                    "reach each other by TCP: look for a firewall, and where a machine has several networks, name the "
                    "interface that leads to the others: export GLOO_SOCKET_IFNAME=eth0"
                )
            wait.report(lambda: f"the connections of the ranks; {self._late()} not connected yet")
        except DistError as error:
            raise PeerLostError("the process that hosts the meeting ended before the ranks were connected") from error

    def _lost(self, message: str) -> PeerLostError:
        return PeerLostError(
            f"{message}; every rank must reach every other by TCP: where a machine has several networks, name the "
            "interface that leads to the others: export GLOO_SOCKET_IFNAME=eth0"
        )

    def _late(self) -> str:
        ranks = self._meeting.ranks
        for step in ("began", "opened"):
            late = [one for rank, one in enumerate(ranks) if not self._store.check([f"{step} {rank}"])]
            if late:
                return f"{several(late)} {'is' if len(late) == 1 else 'are'}"
        return "none is"
