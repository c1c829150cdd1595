"""A lighthouse of torchft for its own DiLoCo, with the same silence limit as this package's."""

from __future__ import annotations

import sys
import threading

from torchft.coordination import LighthouseServer

JOIN_LIMIT_MS = 10_000
"""How long it waits for those that are alive and have not asked yet: a round ends at different times at the sites."""


def main() -> None:
    """Serve until killed. Arguments: port, smallest number of sites, silence limit in seconds."""
    port, min_sites, silence_s = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    server = LighthouseServer(
        bind=f"[::]:{port}",
        min_replicas=min_sites,
        join_timeout_ms=JOIN_LIMIT_MS,
        heartbeat_timeout_ms=round(1000 * silence_s),
    )
    print(f"lighthouse at {server.address()}", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
