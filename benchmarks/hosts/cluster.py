"""``n`` hosts on one private switch: starting programs on them, and causing faults."""

from __future__ import annotations

import os
import re
import shutil
import signal
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from benchmarks.hosts.errors import HostsError
from benchmarks.hosts.host import Host
from benchmarks.hosts.launch import launch_environment
from benchmarks.hosts.network import INTERFACE, address
from benchmarks.hosts.session import Session

MASTER_PORT = 29500
_RATE = re.compile(r"\d+(\.\d+)?[kmg]bit")


class HostCluster:
    """``n`` hosts named h0 to h<n-1> on one private switch; a context manager.

    Args:
        n: Number of hosts, 1 to 250.
        rate: Speed of each host's link in both directions: one tc rate such as ``"100mbit"``, one per host, or None.
        pin: Pin host i to one core (i modulo the cores this process may use).
        log_dir: Folder in which logs are kept; by default a temporary one that is removed with the cluster.
        behind_nat: Hosts behind routers of their own, all with the same private address: they reach the other hosts,
            and no other host reaches them. ``address(i)`` is that of their router.

    Raises:
        HostsError: wrong arguments, or (on entering) a machine that does not allow namespaces.
    """

    def __init__(
        self,
        n: int,
        *,
        rate: str | Sequence[str | None] | None = None,
        pin: bool = False,
        log_dir: str | Path | None = None,
        behind_nat: Collection[int] = (),
    ) -> None:
        self.n = n
        self.rates = _rates(n, rate)
        self.pin = pin
        self.hosts: dict[int, Host] = {}
        for host in behind_nat:
            self._check(host)
        self.behind_nat = frozenset(behind_nat)
        self._log_dir = log_dir
        self._started: list[Host] = []
        self._session: Session | None = None

    def __enter__(self) -> HostCluster:
        self.directory = Path(self._log_dir or tempfile.mkdtemp(prefix="hosts-")).resolve()
        self.directory.mkdir(parents=True, exist_ok=True)
        try:
            self._session = Session.open(
                self.rates,
                pin=self.pin,
                directory=self.directory,
                temporary=self._log_dir is None,
                behind_nat=self.behind_nat,
            )
        except BaseException:
            self._remove_directory()
            raise
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        for host in self._started:
            host.keep_log()
        self.session.close()
        self._remove_directory()

    def _remove_directory(self) -> None:
        if self._log_dir is None:
            shutil.rmtree(self.directory, ignore_errors=True)

    @property
    def session(self) -> Session:
        """The open session. Raises HostsError outside a ``with`` statement."""
        if self._session is None:
            raise HostsError("the cluster is not open: use it in a `with` statement")
        return self._session

    def start(
        self, i: int, argv: Sequence[str], *, env: Mapping[str, str] | None = None, cwd: str | Path | None = None
    ) -> Host:
        """Start a program on host i, which may have run others before.

        Its environment is the caller's, overridden by the variables of a distributed launch (RANK, WORLD_SIZE,
        LOCAL_RANK, NODE_RANK, MASTER_ADDR, MASTER_PORT, GLOO_SOCKET_IFNAME, one thread for OpenMP and MKL) and by
        ``env``.
        Raises HostsError.
        """
        self._check(i)
        launch = launch_environment(i, self.n, address(0), MASTER_PORT) | {"GLOO_SOCKET_IFNAME": INTERFACE}
        self.hosts[i] = self._start(i, argv, {**os.environ, **launch, **(env or {})}, cwd)
        return self.hosts[i]

    def start_at_switch(self, argv: Sequence[str]) -> Host:
        """Start a program beside the switch, whose bridge ``br0`` shows it every packet that the hosts exchange.

        Raises HostsError.
        """
        return self._start(None, argv, dict(os.environ), None)

    def _start(self, i: int | None, argv: Sequence[str], env: Mapping[str, str], cwd: str | Path | None) -> Host:
        place = "switch" if i is None else f"host{i}"
        log_path = self.directory / f"{place}-start{len(self._started)}.log"
        pid = self.session.ask(
            "start", host=i, argv=list(argv), env=dict(env), cwd=str(cwd or os.getcwd()), log=str(log_path)
        )
        started = Host(self.session, -1 if i is None else i, pid, log_path)
        self._started.append(started)
        return started

    def _check(self, i: int) -> None:
        if not 0 <= i < self.n:
            raise HostsError(f"there is no host {i}: the cluster has hosts 0 to {self.n - 1}")

    def wait_for_line(self, i: int, regex: str, timeout_s: float) -> re.Match[str]:
        """See :meth:`Host.wait_for_line`, of the program that host i has started last."""
        return self.hosts[i].wait_for_line(regex, timeout_s)

    def wait(self, timeout_s: float) -> list[int]:
        """Exit status of every started host, in order of host; ``timeout_s`` is for all of them together."""
        deadline = time.monotonic() + timeout_s
        return [self.hosts[i].wait(max(0.0, deadline - time.monotonic())) for i in sorted(self.hosts)]

    def kill(self, i: int) -> None:
        """SIGKILL every process of host i, as in a power failure; returns when none is left."""
        self.session.ask("signal_host", host=i, number=int(signal.SIGKILL))

    def stop(self, i: int) -> None:
        """SIGSTOP every process of host i: it freezes, its connections stay open."""
        self.session.ask("signal_host", host=i, number=int(signal.SIGSTOP))

    def resume(self, i: int) -> None:
        """SIGCONT every process of host i."""
        self.session.ask("signal_host", host=i, number=int(signal.SIGCONT))

    def cut_link(self, i: int) -> None:
        """Unplug host i: no packet gets through, and its connections are not notified."""
        self.session.ask("link", host=i, up=False)

    def restore_link(self, i: int) -> None:
        """Plug host i in again.

        A host that sent an ARP request while the link was cut repeats it only after a second, so the first packet may
        be delayed that long.
        """
        self.session.ask("link", host=i, up=True)

    def set_rate(self, i: int, rate: str) -> None:
        """Change the speed of host i's link in both directions, e.g. to ``"20mbit"``."""
        (checked,) = _rates(1, rate)
        self.session.ask("rate", host=i, rate=checked)

    def bytes_sent(self, i: int) -> int:
        """Bytes host i has put on its link since the cluster opened, headers included."""
        return self.session.ask("counters", host=i)["sent_bytes"]

    def bytes_received(self, i: int) -> int:
        """Bytes host i has received from its link since the cluster opened, headers included."""
        return self.session.ask("counters", host=i)["received_bytes"]

    def shaping(self, i: int) -> dict[str, Any]:
        """``{"up": ..., "down": ...}``, each None or rate_bps, passed_bytes and delayed_packets of that shaper."""
        return self.session.ask("shaping", host=i)


def _rates(n: int, rate: str | Sequence[str | None] | None) -> list[str | None]:
    if not 1 <= n <= 250:
        raise HostsError(f"a cluster has 1 to 250 hosts, got {n}")
    rates = [rate] * n if rate is None or isinstance(rate, str) else list(rate)
    if len(rates) != n:
        raise HostsError(f"{len(rates)} rates given for {n} hosts: give one, or one per host")
    for one in rates:
        if one is not None and not _RATE.fullmatch(one):
            raise HostsError(f"rate {one!r} is not understood: write a number and kbit, mbit or gbit, e.g. '100mbit'")
    return rates
