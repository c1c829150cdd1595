"""A lighthouse that serves one run: it holds nothing that matters, and may be started again at any time.

Why its options are what they are (measured, see :mod:`lightning_parablock.elastic.lighthouse`):

* ``min_replicas=1``: how many sites are enough is the run's business, which knows ``min_clients`` and who holds what.
* ``heartbeat_timeout_ms`` = ``silence_s``: a process without a heartbeat for that long holds up no other.
* ``join_timeout_ms`` = 1 s, or half of ``silence_s`` where that is less: how long the others wait for one that sent a
  heartbeat and does not ask, as one that was killed a moment ago. A list without it is given only if more than half
  have asked. Those that get the list find out whether it is gone or slow, so a short time loses no site.
* ``quorum_tick_ms=50``: how late the end of ``silence_s`` is noticed. Calls are looked at when they come.
"""

from __future__ import annotations

import socket
from typing import Any

from lightning_parablock.elastic.torchft import coordination
from lightning_parablock.errors import ConfigurationError

_TICK_MS = 50
_JOIN_MS = 1000


class LighthouseServer:
    """A lighthouse in this process.

    Args:
        host: Address to listen at; ``0.0.0.0`` for all of this machine.
        port: TCP port; 0 for any.
        silence_s: Seconds without a heartbeat after which a process counts as gone.

    Attributes:
        port: The port that it listens at.

    Raises:
        ConfigurationError: torchft is not installed, or the port cannot be opened.
    """

    def __init__(self, host: str, port: int, silence_s: float) -> None:
        silence_ms = round(1000 * silence_s)
        bare = f"[{host}]" if ":" in host and not host.startswith("[") else host
        try:
            self._server: Any = coordination().LighthouseServer(
                bind=f"{bare}:{port}",
                min_replicas=1,
                join_timeout_ms=min(_JOIN_MS, silence_ms // 2),
                quorum_tick_ms=_TICK_MS,
                heartbeat_timeout_ms=silence_ms,
            )
        except RuntimeError as error:
            raise ConfigurationError(
                f"{socket.gethostname()} cannot open a lighthouse at {host}, port {port}: {error}; end the program "
                "that uses the port (another lighthouse, perhaps), or choose another port"
            ) from error
        self.port = int(str(self._server.address()).rpartition(":")[2])

    def close(self) -> None:
        """Stop; the sites wait for the next lighthouse at this address."""
        self._server.shutdown()
