"""The command line of :mod:`benchmarks.hosts`: run one command on every host, output prefixed by the host's name."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence

from benchmarks.hosts.cluster import MASTER_PORT, HostCluster
from benchmarks.hosts.errors import HostsError
from benchmarks.hosts.host import POLL_S, Host
from benchmarks.hosts.network import address

TIMEOUT_STATUS = 124


def main(argv: Sequence[str] | None = None) -> int:
    """Run; returns the first nonzero exit status (128 + n for signal n), or 124 when the time limit was exceeded."""
    arguments = _parse(argv)
    rates = None if arguments.rate is None else arguments.rate.split(",")
    rate = rates[0] if rates and len(rates) == 1 else rates
    try:
        with HostCluster(arguments.n, rate=rate, pin=arguments.pin, log_dir=arguments.log_dir) as cluster:
            hosts = [cluster.start(i, _fill(arguments.command, i, arguments.n)) for i in range(arguments.n)]
            return _follow(hosts, arguments.timeout_s)
    except HostsError as error:
        print(f"hosts: {error}", file=sys.stderr)
        return 1


def _follow(hosts: list[Host], timeout_s: float) -> int:
    deadline = time.monotonic() + timeout_s
    printed = [0] * len(hosts)
    while True:
        statuses = [host.poll() for host in hosts]
        ended = None not in statuses
        expired = time.monotonic() > deadline
        for host in hosts:
            printed[host.index] = _print_new_lines(host, printed[host.index], everything=ended or expired)
        if ended:
            failed = [status for status in statuses if status]
            return 0 if not failed else failed[0] if failed[0] > 0 else 128 - failed[0]
        if expired:
            print(f"hosts: not finished after {timeout_s} s", file=sys.stderr)
            return TIMEOUT_STATUS
        time.sleep(5 * POLL_S)


def _print_new_lines(host: Host, start: int, *, everything: bool) -> int:
    text = host.log_text()
    end = len(text) if everything else text.rfind("\n") + 1
    for line in text[start:end].splitlines():
        print(f"[h{host.index}] {line}", flush=True)
    return max(start, end)


def _fill(command: Sequence[str], rank: int, n: int) -> list[str]:
    values = {"{rank}": str(rank), "{n}": str(n), "{master}": address(0), "{port}": str(MASTER_PORT)}
    filled = list(command)
    for name, value in values.items():
        filled = [word.replace(name, value) for word in filled]
    return filled


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.hosts",
        description="Run a command on N hosts: network namespaces on this machine, joined by links of a chosen speed.",
        epilog="{rank}, {n}, {master} and {port} in CMD are replaced; each host also has RANK, WORLD_SIZE and so on.",
    )
    parser.add_argument("-n", type=int, default=2, help="number of hosts (default 2)")
    parser.add_argument(
        "--rate", help="rate of each link in both directions, e.g. 100mbit; or a comma-separated list, one per host"
    )
    parser.add_argument("--pin", action="store_true", help="pin host i to one core")
    parser.add_argument(
        "--timeout-s", type=float, default=600.0, help="time limit for all hosts in seconds (default 600)"
    )
    parser.add_argument("--log-dir", help="keep the logs in this folder")
    parser.add_argument("command", nargs="+", metavar="CMD", help="after --: the command and its arguments")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
