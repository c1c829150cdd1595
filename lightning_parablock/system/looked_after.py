"""Actions that wait silently for other ranks, run on a thread that the calling thread supervises."""

from __future__ import annotations

import threading
from collections.abc import Callable

_POLL_S = 0.05


def run_looked_after(action: Callable[[], object], look: Callable[[], object], name: str) -> BaseException | None:
    """Run an action on its own thread and supervise it from this one, many times per second.

    Args:
        action: Runs on a daemon thread, which is abandoned if ``look`` raises.
        look: Called repeatedly; raises to end the wait.
        name: Name of the thread.

    Returns:
        The exception raised by the action, if any.
    """
    failure: list[BaseException] = []

    def run() -> None:
        try:
            action()
        except BaseException as error:
            failure.append(error)

    thread = threading.Thread(target=run, daemon=True, name=name)
    thread.start()
    thread.join(_POLL_S)
    while thread.is_alive():
        look()
        thread.join(_POLL_S)
    return failure[0] if failure else None
