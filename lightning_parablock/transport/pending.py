"""The communication thread: gloo's point-to-point cannot be polled, so somebody else has to do the waiting."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import torch
from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import CallOrderError, PeerError, PeerTimeoutError
from lightning_parablock.settings import Settings
from lightning_parablock.system.limited_wait import LATE, LimitedWait
from lightning_parablock.transport.base import Exchange, ExchangeFacts

log = logging.getLogger(__name__)

_POLL_S = 0.05


class PendingExchange(Exchange):
    """An exchange that the communication thread carries out.

    Args:
        check: Raises what is known of lost or silent peers, with the place in its message.
        late: Says which clients or messages the exchange waits for.
        round_index: Number of the round, for messages.
        block: Name of the block, for messages.
        settings: ``straggler_timeout_s`` is the limit of :meth:`wait` while all peers are alive.
        n_threads: How many carry it out.
        n_bringing: How many of them bring a part of the commit.
    """

    def __init__(
        self,
        check: Callable[[], None],
        late: Callable[[], str],
        round_index: int,
        block: str,
        settings: Settings,
        *,
        n_threads: int,
        n_bringing: int,
    ) -> None:
        super().__init__(brings_increment=settings.compression.is_lossy)
        self._check, self._late = check, late
        self._round, self._block = round_index, block
        self._limit_s = settings.straggler_timeout_s
        self._finished = threading.Event()
        self._commit: Tensor | None = None
        self._error: BaseException | None = None
        self._facts: ExchangeFacts | None = None
        self._n_bringing = n_bringing
        self._lock = threading.Lock()
        self._prepared = threading.Barrier(n_threads, timeout=self._limit_s + settings.exchange_timeout_s)

    def meet(self) -> None:
        """Called by each communication thread that is prepared: waits for the others.

        Raises:
            PeerTimeoutError: one of them was not prepared in time, or has failed, whose error counts.
        """
        try:
            self._prepared.wait()
        except threading.BrokenBarrierError as error:
            raise PeerTimeoutError(f"the exchanges before it have not finished: {self._late()}") from error

    def is_last_part(self) -> bool:
        """Called by each thread that has brought its part: whether the others have, too."""
        with self._lock:
            self._n_bringing -= 1
            return self._n_bringing == 0

    def succeed(self, commit: Tensor, facts: ExchangeFacts) -> None:
        """Called by a communication thread."""
        self._commit, self._facts = commit, facts
        self._finished.set()

    def fail(self, error: BaseException) -> None:
        """Called by a communication thread; the first error counts, and none after the commit is whole."""
        with self._lock:
            if not self._finished.is_set():
                self._error = error
                self._finished.set()
        self._prepared.abort()

    @override
    def _received(self) -> Tensor:
        # In slices, so that a lost peer, Ctrl-C and SIGTERM are seen at once and not when gloo gives up.
        place = f"round {self._round}, block {self._block!r}"
        wait = LimitedWait(self._limit_s, reports=LATE)
        while not self._finished.wait(_POLL_S):
            self._check()
            if wait.is_over:
                raise PeerTimeoutError(
                    f"not finished after {self._limit_s:g} s although every client is alive: {self._late()} (raise "
                    "straggler_timeout_s if a client needs longer than that for its local steps)"
                ).at(self._round, self._block)
            wait.report(lambda: f"{place}: {self._late()}")
        if isinstance(self._error, PeerError):
            raise self._error.at(self._round, self._block) from self._error
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


class CommunicationThread:
    """Runs jobs one after the other on a daemon thread, which a stuck transfer cannot keep from ending the process.

    Args:
        name: Of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._is_ready = threading.Event()

    def start(self) -> None:
        """Start the thread; its torch operations use one core, and the training thread keeps all of its own."""
        n_threads = torch.get_num_threads()
        self._thread.start()
        self._is_ready.wait()
        torch.set_num_threads(n_threads)  # what another thread sets is the default of threads to come

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; it must handle its own errors."""
        self._jobs.put(job)

    def end_with(self, job: Callable[[], None]) -> None:
        """Ask the thread to end after its jobs and this one, whose errors are logged: nobody waits for it."""
        self._jobs.put(lambda: _logged(job))
        self._jobs.put(None)

    def join(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` for the end; says whether it has come."""
        self._thread.join(max(0.0, limit_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(1)
        self._is_ready.set()
        while (job := self._jobs.get()) is not None:
            job()


def _logged(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception as error:
        log.warning("parablock: the last messages could not be sent: %s", error)
