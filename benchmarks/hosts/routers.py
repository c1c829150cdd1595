"""Routers that hide a host: all hidden hosts have the same private address, and no other host has a way to it."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.hosts.namespaces import enter_network, run

PRIVATE_ADDRESS = "192.168.1.2"
"""Address of every hidden host in its private network, as many homes and institutions have it."""
_ROUTER_ADDRESS = "192.168.1.1"
_INSIDE = "lan0"


def hide(host: int, router: int) -> None:
    """Connect a host to its router, which is on the bridge and translates addresses (NAT).

    The router forwards what the host sends, and of what comes from outside only the answers to it.

    Args:
        host: Namespace of the host.
        router: Namespace of the router, whose ``eth0`` is on the bridge.

    Raises:
        RuntimeError: a command failed, as where iptables is missing; with its output.
    """
    run(f"ip link add {_INSIDE} type veth peer name eth0 netns /proc/self/fd/{host}", router, keep=host)
    run(f"ip addr add {_ROUTER_ADDRESS}/24 dev {_INSIDE}", router)
    run(f"ip link set {_INSIDE} up", router)
    run("ip link set lo up", host)
    run(f"ip addr add {PRIVATE_ADDRESS}/24 dev eth0", host)
    run("ip link set eth0 up", host)
    run(f"ip route add default via {_ROUTER_ADDRESS}", host)
    run("iptables -P FORWARD DROP", router)
    run(f"iptables -A FORWARD -i {_INSIDE} -o eth0 -j ACCEPT", router)
    run("iptables -A FORWARD -i eth0 -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT", router)
    run("iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE", router)
    _let_forward(router)


def _let_forward(router: int) -> None:
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)
    try:
        enter_network(router)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        enter_network(home)
    finally:
        os.close(home)
