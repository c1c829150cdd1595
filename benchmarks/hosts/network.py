"""A bridge and one network namespace per host, joined by shaped veth links.

Runs only inside the supervisor, in private namespaces: nothing here touches the machine's real network, and no link
leads out. Namespaces are held by file descriptors, without names, so two clusters cannot clash.
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from benchmarks.hosts.namespaces import new_network_namespace, run
from benchmarks.hosts.routers import hide

INTERFACE = "eth0"
"""Name of a host's end of its link."""
# The burst must exceed one 64 KiB segmentation-offload packet with its headers: at 64kb tbf cuts every such packet up
# again, CPU time grows tenfold, and the computation beside it looks slower than it is.
BURST = "128kb"
QUEUE = "512kb"


def address(host: int) -> str:
    """The IPv4 address of a host inside its cluster."""
    return f"10.77.0.{host + 1}"


def interface_bytes(name: str) -> tuple[int, int]:
    """Bytes that a network interface has received and sent, headers included. Raises RuntimeError if there is none."""
    for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
        found, _, counters = line.partition(":")
        if found.strip() == name:
            numbers = counters.split()
            return int(numbers[0]), int(numbers[8])
    raise RuntimeError(f"there is no network interface {name} here")


class Network:
    """The hosts' links: ``eth0`` inside host i, ``v<i>`` at its other end on the bridge ``br0``.

    Args:
        rates: One tc rate per host such as ``"100mbit"``, applied in both directions, or None for no shaping.
        behind_nat: Hosts that have a router of their own, which hides them: all of these hosts have the same private
            address, and the router has the public one. See :mod:`benchmarks.hosts.routers`.
    """

    def __init__(self, rates: Sequence[str | None], behind_nat: Collection[int] = ()) -> None:
        self.rates = list(rates)
        self.behind_nat = frozenset(behind_nat)
        self.namespaces: list[int] = []
        self._routers: list[int] = []
        """Namespaces of the routers; they end when their descriptors close."""

    def open(self) -> None:
        """Create bridge, namespaces and links. Raises RuntimeError with the failed command's output."""
        run("ip link set lo up")
        run("ip link add br0 type bridge")
        run("ip link set br0 up")
        for host, rate in enumerate(self.rates):
            self.namespaces.append(new_network_namespace())
            if host in self.behind_nat:
                self._join_behind_router(host)
            else:
                self._join(host, self.namespaces[host])
            if rate is not None:
                self.set_rate(host, rate)

    def _join_behind_router(self, host: int) -> None:
        router = new_network_namespace()
        self._routers.append(router)
        self._join(host, router)
        hide(self.namespaces[host], router)

    def _join(self, host: int, fd: int) -> None:
        """Connect a namespace, the host's or its router's, to the bridge."""
        run(f"ip link add v{host} type veth peer name {INTERFACE} netns /proc/self/fd/{fd}", keep=fd)
        run(f"ip link set v{host} master br0")
        run(f"ip link set v{host} up")
        run("ip link set lo up", fd)
        run(f"ip addr add {address(host)}/24 dev {INTERFACE}", fd)
        run(f"ip link set {INTERFACE} up", fd)

    def set_link(self, host: int, *, up: bool) -> None:
        """Take the host's link down at the bridge, or up again."""
        run(f"ip link set v{host} {'up' if up else 'down'}")

    def set_rate(self, host: int, rate: str) -> None:
        """Change the rate of the host's link in both directions."""
        # Both directions, else the bottleneck of a star (many senders, one receiver) stays invisible.
        run(_shaper(INTERFACE, rate), self.namespaces[host])
        run(_shaper(f"v{host}", rate))

    def counters(self, host: int) -> dict[str, int]:
        """Bytes the host has sent and received, headers included, counted at the bridge's end of its link."""
        into_bridge, out_of_bridge = interface_bytes(f"v{host}")
        return {"sent_bytes": into_bridge, "received_bytes": out_of_bridge}

    def shaping(self, host: int) -> dict[str, Any]:
        """The shapers' statistics per direction: rate, bytes passed, number of delayed packets."""
        up = run(f"tc -j -s qdisc show dev {INTERFACE}", self.namespaces[host])
        return {"up": _shaper_report(up), "down": _shaper_report(run(f"tc -j -s qdisc show dev v{host}"))}

    def processes(self, host: int) -> list[int]:
        """All processes of the host regardless of process group, i.e. those in its network namespace."""
        mine = os.fstat(self.namespaces[host]).st_ino
        return [pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _network_of(pid) == mine]


def _network_of(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/net").st_ino
    except OSError:  # it ended meanwhile, or is a zombie
        return None


def _shaper(device: str, rate: str) -> str:
    return f"tc qdisc replace dev {device} root tbf rate {rate} burst {BURST} limit {QUEUE}"


def _shaper_report(text: str) -> dict[str, int] | None:
    for qdisc in json.loads(text):
        if qdisc["kind"] == "tbf":
            rate_bps = 8 * int(qdisc["options"]["rate"])
            return {"rate_bps": rate_bps, "passed_bytes": qdisc["bytes"], "delayed_packets": qdisc["overlimits"]}
    return None
