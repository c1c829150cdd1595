"""Processes on this machine in place of hosts, for jobs without links and where namespaces are not allowed."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from benchmarks.hosts import HostsError
from benchmarks.hosts.launch import launch_environment

LIMIT_S = 10.0
LOOPBACK = "127.0.0.1"


class LocalProcess:
    """One started program."""

    def __init__(self, index: int, process: subprocess.Popen[bytes], log: Path) -> None:
        self.index = index
        self.process, self._log = process, log

    def poll(self) -> int | None:
        """Exit status, or None while it runs."""
        return self.process.poll()

    def log_text(self) -> str:
        """Everything it has printed so far."""
        return self._log.read_text(errors="replace")


class LocalCluster:
    """``n`` processes that meet over the loopback; the part of :class:`benchmarks.hosts.HostCluster` that workers need.

    Args:
        n: Number of processes.
        pin: Pin process i to one core (i modulo the cores this process may use).
    """

    def __init__(self, n: int, *, pin: bool = False) -> None:
        self.n = n
        self.hosts: dict[int, LocalProcess] = {}
        self._cores = sorted(os.sched_getaffinity(0)) if pin else []

    def __enter__(self) -> LocalCluster:
        self._folder = Path(tempfile.mkdtemp(prefix="local-"))
        with socket.socket() as probe:
            probe.bind((LOOPBACK, 0))
            self._port = int(probe.getsockname()[1])
        return self

    def __exit__(self, *_: object) -> None:
        for host in self.hosts.values():
            host.process.kill()
            host.process.wait(LIMIT_S)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self, i: int, argv: Sequence[str], *, env: Mapping[str, str] | None = None) -> LocalProcess:
        """Start process i with the environment of a distributed launch."""
        launch = launch_environment(i, self.n, LOOPBACK, self._port)
        log = self._folder / f"{i}.log"
        with log.open("wb") as out:
            process = self._start(i, argv, {**os.environ, **launch, **(env or {})}, out)
        self.hosts[i] = LocalProcess(i, process, log)
        return self.hosts[i]

    def _start(self, i: int, argv: Sequence[str], env: Mapping[str, str], out: IO[bytes]) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(argv, env=env, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.STDOUT)
        if self._cores:
            os.sched_setaffinity(process.pid, {self._cores[i % len(self._cores)]})
        return process

    def set_rate(self, i: int, rate: str) -> None:
        """Raises HostsError."""
        raise HostsError(f"process {i} has no link of its own that could get a rate of {rate}")

    def bytes_sent(self, i: int) -> int:
        """Raises HostsError."""
        raise HostsError(f"process {i} has no link of its own that could count")
