"""The environment of a distributed launch, as torchrun would set it for one process per machine."""

from __future__ import annotations


def launch_environment(rank: int, n: int, master: str, port: int) -> dict[str, str]:
    """Variables for process ``rank`` of ``n``, which meet at ``master``:``port``; one thread for OpenMP and MKL."""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(n),
        "LOCAL_RANK": "0",
        "NODE_RANK": str(rank),
        "MASTER_ADDR": master,
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONUNBUFFERED": "1",
    }
