"""Every process of a run on a host of its own, whose link can be cut."""

from __future__ import annotations

import contextlib
import signal
import sys
from pathlib import Path

from benchmarks.hosts import Host, HostCluster, address
from tests.elastic.processes.run import Places, Start, environment
from tests.support.launch import ROOT


class Apart(Places):
    """Places of a run on the hosts of a cluster: the lighthouse on the first, each site on the next free one.

    Args:
        cluster: The hosts.
    """

    address = address(0)

    def __init__(self, cluster: HostCluster) -> None:
        self._cluster = cluster
        self._hosts = dict[str | None, int]({None: 0})

    def host_of(self, site: str | None) -> int:
        """Number of a site's host; None stands for the lighthouse."""
        return self._hosts.setdefault(site, len(self._hosts))

    def start(self, site: str | None) -> Start:
        def start(words: list[str], log: Path) -> _OnHost:
            host = self._cluster.start(self.host_of(site), [sys.executable, *words], env=environment(), cwd=ROOT)
            log.unlink(missing_ok=True)
            log.symlink_to(host.log_path)
            return _OnHost(host)

        return start


class _OnHost:
    def __init__(self, host: Host) -> None:
        self._host = host

    def code(self) -> int | None:
        return self._host.poll()

    def signal(self, signum: int) -> None:
        self._host.send_signal(signum)

    def end(self) -> None:
        with contextlib.suppress(Exception):
            self._host.send_signal(signal.SIGKILL)
            self._host.wait(timeout_s=10.0)
