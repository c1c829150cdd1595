"""The communication thread lets go of what its jobs held."""

from __future__ import annotations

import time
import weakref

from lightning_parablock.transport.communication_thread import CommunicationThread


class Held:
    """Stands for the tensors of an exchange."""


def test_a_job_that_is_over_holds_nothing_although_no_other_follows() -> None:
    thread = CommunicationThread("held")
    thread.start()
    held = Held()
    is_held = weakref.ref(held)
    thread.put(lambda held=held: None)
    del held
    limit_s = time.monotonic() + 30
    while is_held() is not None and time.monotonic() < limit_s:
        time.sleep(0.01)
    assert is_held() is None
    thread.end()
    assert thread.join(30)
