"""Starts aggregations by Flower's SecAgg+ on hosts with shaped links: one per client, and one for the server."""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.harness.results import REPOSITORY, without_places
from benchmarks.harness.workers import RunFailedError
from benchmarks.hosts import HostCluster, HostsError, address

VERSION = "1.42.0"
ENVIRONMENT = "FLOWER_PYTHON"
LIMIT_S = 1200.0
POLL_S = 0.1
LAST_WORDS = 1500


def default_python() -> str:
    """The Python that has Flower: the one that FLOWER_PYTHON names, or that of the environment ``make bench`` makes."""
    return os.environ.get(ENVIRONMENT, str(Path(sys.prefix, "flower", "bin", "python")))


def aggregate(python: str, clients: int, scalars: int, aggregations: int, rate_mbit: float) -> dict[str, Any]:
    """Run some aggregations, one after the other, with the same clients and keys made anew in each.

    Args:
        python: Python of an environment with ``flwr``.
        clients: Number of clients.
        scalars: Length of every client's vector.
        aggregations: Number of aggregations.
        rate_mbit: Rate of every host's link, both directions.

    Returns:
        The server's answer, see :func:`benchmarks.secure.by_flower.serve`, and ``client_link_bytes``, the bytes that
        each client's host has received and sent.

    Raises:
        RunFailedError: it was not installed, failed, or did not end.
    """
    if not Path(python).exists():
        raise RunFailedError(
            f"Flower is not installed at {without_places(python)}: `make bench` installs it; or name the Python "
            f"of an environment with flwr=={VERSION} with --flower-python, or with {ENVIRONMENT}"
        )
    plan = {"clients": clients, "scalars": scalars, "aggregations": aggregations, "server": address(clients)}
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, f"answer-{host}.json") for host in range(clients + 1)]
        try:
            with HostCluster(clients + 1, rate=f"{round(1000 * rate_mbit)}kbit", pin=True) as cluster:
                for host in (clients, *range(clients)):
                    given = json.dumps(plan | {"client": host, "answer": str(paths[host])})
                    words = [python, "-m", "benchmarks.secure.by_flower", given]
                    cluster.start(host, words, cwd=REPOSITORY, env={"PYTHONPATH": str(REPOSITORY)})
                _wait(cluster, paths)
        except HostsError as error:
            raise RunFailedError(str(error)) from error
        answers = [json.loads(path.read_text()) for path in paths]
    return answers[clients] | {"client_link_bytes": [answer["link_bytes"] for answer in answers[:clients]]}


def _wait(cluster: HostCluster, paths: list[Path]) -> None:
    deadline_s = time.monotonic() + LIMIT_S
    while not all(path.exists() for path in paths):
        for index, host in cluster.hosts.items():
            if host.poll() is not None and not paths[index].exists():
                words = without_places(host.log_text())[-LAST_WORDS:]
                raise RunFailedError(f"Flower's host {index} ended with {host.poll()}: {words}")
        if time.monotonic() > deadline_s:
            raise RunFailedError(f"Flower has not ended after {LIMIT_S:g} s")
        time.sleep(POLL_S)
