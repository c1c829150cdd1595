"""Runs a job on two hosts and collects the clients' results."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.results import git_state, without_places
from benchmarks.hosts import HostCluster
from benchmarks.peers.job import Job
from benchmarks.peers.methods import N_CLIENTS

POLL_S = 0.2
MESSAGE_LINES = 2
Run = dict[str, Any]


class PeerFailedError(RuntimeError):
    """A run that did not finish; the message has the last lines of a client's log."""


def run(job: Job, link: str | None, limit_s: float) -> Run:
    """Run a job on hosts joined by ``link`` (a tc rate; None: unshaped); a failure is a result, too.

    Returns:
        ``job``, ``link``, ``git``, and ``clients`` (each one's result) or ``failed`` (the message).
    """
    run: Run = {"job": _public(job), "link": link, "git": git_state()}
    with tempfile.TemporaryDirectory() as folder:
        try:
            return run | {"clients": _clients(replace(job, folder=folder), link, limit_s)}
        except PeerFailedError as error:
            return run | {"failed": str(error)}


def _public(job: Job) -> Mapping[str, Any]:
    hidden = ("folder", "train", "test")  # paths of this machine
    return {name: value for name, value in asdict(job).items() if name not in hidden}


def _clients(job: Job, link: str | None, limit_s: float) -> list[Any]:
    command = [sys.executable, "-m", "benchmarks.bench_peers", "--worker", json.dumps(asdict(job))]
    with HostCluster(N_CLIENTS, rate=link, pin=job.timed) as cluster:
        for host in range(N_CLIENTS):
            cluster.start(host, command, env={"TORCHELASTIC_RUN_ID": "peers", "GROUP_RANK": str(host)})
        _wait(cluster, Path(job.folder), limit_s)
        # Whatever a timed run still has in flight is discarded with its hosts.
        left = [json.loads(_left_by(Path(job.folder), host).read_text()) for host in range(N_CLIENTS)]
    if len({client.get("committed_sha256") for client in left}) > 1:
        raise PeerFailedError("the clients hold different weights")
    return left


def _wait(cluster: HostCluster, folder: Path, limit_s: float) -> None:
    deadline = time.monotonic() + limit_s
    while not all(_left_by(folder, host).exists() for host in range(N_CLIENTS)):
        for host in cluster.hosts.values():
            status = host.poll()
            if status is not None and not _left_by(folder, host.index).exists():
                raise PeerFailedError(f"client {host.index} ended with {status}: {_last_words(host.log_text())}")
        if time.monotonic() > deadline:
            raise PeerFailedError(f"not done after {limit_s:.0f} s")
        time.sleep(POLL_S)


def _left_by(folder: Path, host: int) -> Path:
    return folder / f"result-{host}.json"


def _last_words(log: str) -> str:
    return without_places(" ".join(log.strip().splitlines()[-MESSAGE_LINES:]))
