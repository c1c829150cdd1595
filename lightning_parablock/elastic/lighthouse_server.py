"""A lighthouse that serves one run: it holds nothing that matters, and may be started again at any time.

Why its options are what they are (measured, see :mod:`lightning_parablock.elastic.lighthouse`):

* ``min_replicas=1``: how many sites are enough is the run's business, which knows ``min_clients`` and who holds what.
* ``heartbeat_timeout_ms`` = ``silence_s``: a process without a heartbeat for so long is missing in the next list.
* ``join_timeout_ms`` = ``silence_s``, too: one that sends heartbeats and does not ask holds up the others no longer
  than one that is dead. Only a foreign program does that: a :class:`~lightning_parablock.elastic.lighthouse.Lighthouse`
  asks all the time.
* ``quorum_tick_ms=50``: how late the end of ``silence_s`` is noticed. Calls are looked at when they come.
"""

from __future__ import annotations

import socket
from typing import Any

from lightning_parablock.elastic.torchft import coordination
from lightning_parablock.errors import ConfigurationError

_TICK_MS = 50


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
                join_timeout_ms=silence_ms,
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
