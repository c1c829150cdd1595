"""The communication thread: gloo's point-to-point cannot be polled, so somebody else has to do the waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable

from torch import Tensor
from typing_extensions import override

from lightning_parablock.errors import PeerError, PeerTimeoutError
from lightning_parablock.settings import Settings
from lightning_parablock.transport.base import Exchange, ExchangeFacts

_POLL_S = 0.05


class PendingExchange(Exchange):
    """An exchange that the communication thread carries out.

    Args:
        check: Raises what is known of lost or silent peers, with the place in its message.
        round_index: Number of the round, for messages.
        block: Name of the block, for messages.
        settings: ``straggler_timeout_s`` is the limit of :meth:`wait` while all peers are alive.
    """

    def __init__(self, check: Callable[[], None], round_index: int, block: str, settings: Settings) -> None:
        self._check = check
        self._round, self._block = round_index, block
        self._limit_s = settings.straggler_timeout_s
        self._finished = threading.Event()
        self._commit: Tensor | None = None
        self._error: BaseException | None = None
        self._facts: ExchangeFacts | None = None

    def succeed(self, commit: Tensor, facts: ExchangeFacts) -> None:
        """Called by the communication thread."""
        self._commit, self._facts = commit, facts
        self._finished.set()

    def fail(self, error: BaseException) -> None:
        """Called by the communication thread."""
        self._error = error
        self._finished.set()

    @override
    def wait(self) -> Tensor:
        # In slices, so that a lost peer, Ctrl-C and SIGTERM are seen at once and not when gloo gives up.
        deadline_s = time.monotonic() + self._limit_s
        while not self._finished.wait(_POLL_S):
            self._check()
            if time.monotonic() > deadline_s:
                raise PeerTimeoutError(
                    f"not finished after {self._limit_s:g} s although every client is alive (raise straggler_timeout_s "
                    "if one needs longer than that for its local steps)"
                ).at(self._round, self._block)
        if isinstance(self._error, PeerError):
            raise self._error.at(self._round, self._block) from self._error
        if self._error is not None:
            raise self._error
        assert self._commit is not None
        return self._commit

    @property
    @override
    def facts(self) -> ExchangeFacts:
        assert self._facts is not None, "the facts are complete only after wait() has returned"
        return self._facts


class CommunicationThread:
    """Runs jobs one after the other on a daemon thread, which a stuck transfer cannot keep from ending the process."""

    def __init__(self) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name="parablock-exchange")

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; it must handle its own errors."""
        self._jobs.put(job)

    def close(self, limit_s: float) -> bool:
        """Ask the thread to end after its jobs and wait at most ``limit_s``; says whether it has ended."""
        self._jobs.put(None)
        self._thread.join(limit_s)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (job := self._jobs.get()) is not None:
            job()
