"""An exchange that communication threads carry out, and the training thread's wait for it, within a limit."""

from __future__ import annotations

import threading
from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import CallOrderError, PeerError, PeerTimeoutError
from lightning_parablock.settings import Settings
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.transport.base import Exchange, ExchangeFacts

_POLL_S = 0.05


class PendingExchange(Exchange):
    """An exchange that communication threads carry out.

    Args:
        check: Raises what is known about lost or silent peers, with round and block in its message.
        late: Says which clients or messages the exchange waits for.
        locate: Adds round and block to an error, and what to do.
        round_index: Number of the round, for messages.
        block: Name of the block, for messages.
        settings: ``straggler_timeout_s`` is the limit of :meth:`wait` while all peers are alive.
        n_threads: Number of threads that carry it out.
        n_bringing: How many of them contribute a part of the commit.
        brings_increment: See :class:`~lightning_parablock.transport.base.Exchange`.
    """

    def __init__(
        self,
        check: Callable[[], None],
        late: Callable[[], str],
        locate: Callable[[PeerError], PeerError],
        round_index: int,
        block: str,
        settings: Settings,
        *,
        n_threads: int,
        n_bringing: int,
        brings_increment: bool,
    ) -> None:
        super().__init__(brings_increment=brings_increment)
        self._check, self._late, self._locate = check, late, locate
        self._round, self._block = round_index, block
        self._limit_s = settings.straggler_timeout_s
        self._finished = threading.Event()
        self._commit: Tensor | None = None
        self._error: BaseException | None = None
        self._facts: ExchangeFacts | None = None
        self._n_bringing = n_bringing
        self._notes: list[Callable[[], None]] = []
        self._lock = threading.Lock()
        self._prepared = threading.Barrier(n_threads, timeout=self._limit_s + settings.exchange_timeout_s)

    def meet(self) -> None:
        """Called by each communication thread once it is prepared for a stage: waits for the others.

        Raises:
            PeerTimeoutError: one of them was not prepared in time, or failed, in which case its own error counts.
        """
        try:
            self._prepared.wait()
        except threading.BrokenBarrierError as error:
            raise PeerTimeoutError(f"the exchanges before it have not finished: {self._late()}") from error

    def is_last_part(self) -> bool:
        """Called by each thread that has contributed its part; returns whether all others have as well."""
        with self._lock:
            self._n_bringing -= 1
            return self._n_bringing == 0

    def succeed(self, commit: Tensor, facts: ExchangeFacts) -> None:
        """Called by a communication thread."""
        with self._lock:
            self._commit, self._facts = commit, facts
            self._finished.set()
        self._notify()

    def fail(self, error: BaseException) -> None:
        """Called by a communication thread; the first error counts, and none once the commit is complete."""
        with self._lock:
            if not self._finished.is_set():
                self._error = error
                self._finished.set()
        self._prepared.abort()
        self._notify()

    @override
    def when_over(self, note: Callable[[], None]) -> None:
        with self._lock:
            self._notes.append(note)
        if self._finished.is_set():
            self._notify()

    def _notify(self) -> None:
        with self._lock:
            notes, self._notes = self._notes, []
        for note in notes:
            note()

    @override
    def _received(self) -> Tensor:
        # In slices, so that a lost peer, Ctrl-C and SIGTERM are seen at once and not when gloo gives up.
        place = f"round {self._round}, block {self._block!r}"
        wait = LimitedWait(self._limit_s, reports=LATE)
        while not self._finished.wait(_POLL_S):
            self._check()
            if wait.is_over:
                raise self._locate(
                    PeerTimeoutError(
                        f"not finished after {self._limit_s:g} s although every client is alive: {self._late()} (raise "
                        "straggler_timeout_s if a client needs longer than that for its local steps)"
                    )
                )
            wait.report(lambda: f"{place}: {self._late()}")
        if isinstance(self._error, PeerError):
            raise self._locate(self._error) from self._error
        if self._error is not None:
            raise self._error
        assert self._commit is not None
        return self._commit

    @property
    @override
    def facts(self) -> ExchangeFacts:
        if self._facts is None:
            raise CallOrderError("the facts are complete only after wait() has returned")
        return self._facts
