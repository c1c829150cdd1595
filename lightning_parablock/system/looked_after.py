"""Runs what waits for others by itself, in silence and perhaps for long, while this thread looks after it."""

from __future__ import annotations

import threading
from collections.abc import Callable

_POLL_S = 0.05


def run_looked_after(action: Callable[[], object], look: Callable[[], object], name: str) -> BaseException | None:
    """Run an action on a thread of its own and look after it from this one, many times a second.

    Args:
        action: Runs on a daemon thread, which is left behind where ``look`` raises.
        look: Raises to end the wait.
        name: Name of the thread.

    Returns:
        What the action has raised, if it has.
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
