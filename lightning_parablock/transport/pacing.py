"""A cap on the rate at which a rank sends, for shared links."""

from __future__ import annotations

import threading
import time


class Pacer:
    """Spaces messages so that their mean rate stays at or below a cap.

    Args:
        upload_bps: Cap for all messages of this rank together, in bits per second; None for no cap.

    Threads: all senders of the rank share one.
    """

    def __init__(self, upload_bps: float | None) -> None:
        self._upload_bps = upload_bps
        self._lock = threading.Lock()
        self._free_s = 0.0

    def wait(self, message_bytes: int) -> None:
        """Sleep until a message of this size may leave."""
        if self._upload_bps is None:
            return
        with self._lock:
            now_s = time.monotonic()
            start_s = max(now_s, self._free_s)
            self._free_s = start_s + 8 * message_bytes / self._upload_bps
        time.sleep(start_s - now_s)
