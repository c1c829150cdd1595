"""A thread for the waiting: gloo's point-to-point cannot be polled, and the training thread has other work."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

import torch

log = logging.getLogger(__name__)


class CommunicationThread:
    """Runs jobs one after the other on a daemon thread, so that a stuck transfer cannot keep the process from ending.

    Args:
        name: Name of the thread.
    """

    def __init__(self, name: str) -> None:
        self._jobs: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True, name=name)
        self._is_ready = threading.Event()

    def start(self) -> None:
        """Start the thread; its torch operations use one core, and the training thread keeps all of its cores."""
        n_threads = torch.get_num_threads()
        self._thread.start()
        self._is_ready.wait()
        torch.set_num_threads(n_threads)  # what another thread sets becomes the default for later threads

    def put(self, job: Callable[[], None]) -> None:
        """Queue a job; it must handle its own errors."""
        self._jobs.put(job)

    def end_with(self, job: Callable[[], None]) -> None:
        """Ask the thread to end after its jobs and this one, whose errors are logged since no caller waits for it."""
        self._jobs.put(lambda: _logged(job))
        self._jobs.put(None)

    def end(self) -> None:
        """Ask the thread to end after its jobs."""
        self._jobs.put(None)

    def join(self, limit_s: float) -> bool:
        """Wait at most ``limit_s`` for the thread to end; returns whether it has."""
        self._thread.join(max(0.0, limit_s))
        return not self._thread.is_alive()

    def _run(self) -> None:
        torch.set_num_threads(1)
        self._is_ready.set()
        while (job := self._jobs.get()) is not None:
            job()
            del job  # it holds the tensors of an exchange, and the next one may come much later


def _logged(job: Callable[[], None]) -> None:
    try:
        job()
    except Exception as error:
        log.warning("parablock: the last messages could not be sent: %s", error)
