"""The one process that holds a cluster together: process 1 of a private process namespace.

It reads one JSON command per line from standard input and answers each with one line of JSON. It exits when its input
closes or when the process that started it is gone for whatever reason. The kernel then ends all processes of all hosts
and frees their networks, because process 1 of their namespace is gone.
"""

from __future__ import annotations

import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from benchmarks.hosts.namespaces import CLONE_NEWUTS, enter_network, run, unshare
from benchmarks.hosts.network import Network, address

KILL_LIMIT_S = 10.0


class Supervisor:
    """Starts, signals and reaps the hosts' processes; ``pin`` gives host i one core, round robin."""

    def __init__(self, network: Network, *, pin: bool) -> None:
        self.network = network
        self.cores = sorted(os.sched_getaffinity(0)) if pin else []
        self.statuses: dict[int, int] = {}

    def serve(self, starter: int) -> None:
        """Answer commands until the input closes or the process behind the pidfd ``starter`` has ended."""
        while True:
            ready, _, _ = select.select([sys.stdin.fileno(), starter], [], [], 1.0)
            self._reap()
            if starter in ready:
                return
            if ready:
                line = sys.stdin.readline()
                if not line:
                    return
                print(json.dumps(self._answer(json.loads(line))), flush=True)

    def _answer(self, command: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"ok": getattr(self, "do_" + command.pop("do"))(**command)}
        except Exception as error:  # the starter raises it; this process must stay to keep the hosts
            return {"error": f"{type(error).__name__}: {error}"}

    def do_start(self, host: int | None, argv: list[str], env: dict[str, str], cwd: str, log: str) -> int:
        """Start a program of a host, or beside the switch, in its own session; returns its pid in this namespace."""
        with open(log, "wb") as out:
            process = subprocess.Popen(
                argv,
                env=env,
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=lambda: self._become(host),  # safe: this process has one thread
            )
        process.returncode = 0  # `_reap` collects every child, so Popen must not
        return process.pid

    def _become(self, host: int | None) -> None:
        if host is None:
            return
        enter_network(self.network.namespaces[host])
        unshare(CLONE_NEWUTS)
        socket.sethostname(f"h{host}")
        if self.cores:
            os.sched_setaffinity(0, {self.cores[host % len(self.cores)]})

    def do_status(self, pid: int) -> int | None:
        """Exit status of a started program (negative: the signal that ended it); None while it runs."""
        return self.statuses.get(pid)

    def do_signal_group(self, pid: int, number: int) -> None:
        """Signal the process group of a started program, as a terminal or a job scheduler would."""
        if pid not in self.statuses:
            os.killpg(pid, number)

    def do_signal_host(self, host: int, number: int) -> int:
        """Signal every process of a host; SIGKILL repeats until none is left. Returns how many were there."""
        pids = self.network.processes(host)
        _signal_all(pids, number)
        deadline = time.monotonic() + KILL_LIMIT_S
        while number == signal.SIGKILL and (left := self.network.processes(host)):
            if time.monotonic() > deadline:
                raise RuntimeError(f"processes {left} of host {host} outlive SIGKILL")
            _signal_all(left, number)
            self._reap()
            time.sleep(0.002)
        return len(pids)

    def do_link(self, host: int, up: bool) -> None:
        """Cut or restore a host's link."""
        self.network.set_link(host, up=up)

    def do_rate(self, host: int, rate: str) -> None:
        """Change the speed of a host's link."""
        self.network.set_rate(host, rate)

    def do_counters(self, host: int) -> dict[str, int]:
        """Byte counters of the host's link."""
        return self.network.counters(host)

    def do_shaping(self, host: int) -> dict[str, Any]:
        """Statistics of the host's two shapers."""
        return self.network.shaping(host)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            self.statuses[pid] = os.waitstatus_to_exitcode(status)


def _signal_all(pids: list[int], number: int) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def _give_hosts_names(n: int, directory: Path) -> None:
    names = "".join(f"{address(host)} h{host}\n" for host in range(n))
    path = directory / "hosts"
    path.write_text(f"127.0.0.1 localhost\n{names}")
    run(f"mount --bind {shlex.quote(str(path))} /etc/hosts")


def main() -> None:
    """Build the network, report that it is ready, and serve."""
    options = json.loads(sys.argv[1])
    try:
        _give_hosts_names(len(options["rates"]), Path(options["directory"]))
        network = Network(options["rates"], options["behind_nat"])
        network.open()
        ready = {"ok": os.stat("/proc/self/ns/pid").st_ino}
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(json.dumps({"error": str(error)}), flush=True)
        return
    print(json.dumps(ready), flush=True)
    Supervisor(network, pin=options["pin"]).serve(options["starter"])
    if options["temporary"]:  # the starter removes it, too, unless it was killed
        shutil.rmtree(options["directory"], ignore_errors=True)


if __name__ == "__main__":
    main()
