"""Commands in wg-quick's files: which packets get into the links, and which get out of them.

Linux accepts a packet for any of its addresses over any interface, and forwards others where it has been told to do so.
If a PostUp fails, wg-quick removes the interface and runs no PostDown: each command here can be run again.
"""

from __future__ import annotations

Entry = tuple[str, object]

_PRIORITY = 9100
"""Of the hub's routing rules, and the metric of its route; below it only the hub's own addresses are looked up."""


def guard(addresses: str) -> list[Entry]:
    """Drop packets for the addresses of the links that come over another interface.

    Without this, the machines in the same network segment, and the hub through the outer layer, would reach what
    listens at an inner address without any key of it; and a machine that forwards would send them into the links.

    Args:
        addresses: The range of the links.
    """
    return _in_raw(f"PREROUTING ! -i %i -d {addresses} -m addrtype ! --src-type LOCAL -j DROP")


def for_itself(address: str) -> list[Entry]:
    """Drop packets out of the links that are not for this machine, even if it forwards for other interfaces.

    Args:
        address: Of this machine in the links.
    """
    return _in_raw(f"PREROUTING -i %i ! -d {address} -j DROP")


def nothing_but_links(address: str, outer_range: str, inner_port: int) -> list[Entry]:
    """Close a site's machine to the outer layer: open are the inner layer, ping, and answers to its own connections.

    The rules are in a chain that is named after the interface, so that one more rule opens a port.

    Args:
        address: Of this machine in the outer layer.
        outer_range: Addresses of the outer layer.
        inner_port: UDP port of the inner layer.
    """
    opened = (f"-p udp --dport {inner_port}", "-p tcp ! --syn", "-p icmp")
    chain = (*(f"-s {outer_range} -d {address} {packets} -j RETURN" for packets in opened), "-j DROP")
    return [
        ("PostUp", "iptables -w -t raw -N %i 2>/dev/null || iptables -w -t raw -F %i"),
        *(("PostUp", f"iptables -w -t raw -A %i {rule}") for rule in chain),
        *_in_raw("PREROUTING -i %i -j %i"),
        ("PostDown", "iptables -w -t raw -F %i || true"),
        ("PostDown", "iptables -w -t raw -X %i || true"),
    ]


def forward_within(outer_range: str) -> list[Entry]:
    """Let the hub forward between sites alone: neither to other networks nor for other interfaces.

    An address that no site has is unreachable, and goes nowhere by the default route.

    Args:
        outer_range: Addresses of the outer layer.
    """
    route = f"unreachable {outer_range} metric {_PRIORITY}"
    rules = (
        f"iif %i to {outer_range} lookup main priority {_PRIORITY}",
        f"iif %i unreachable priority {_PRIORITY + 1}",
    )
    return [
        ("PostUp", f"ip route replace {route}"),
        *(("PostUp", f"ip rule del {rule} 2>/dev/null || true; ip rule add {rule}") for rule in rules),
        ("PostUp", "sysctl -q -w net.ipv4.conf.%i.forwarding=1"),
        *(("PostDown", f"ip rule del {rule} || true") for rule in rules),
        ("PostDown", f"ip route del {route} || true"),
    ]


def _in_raw(rule: str) -> list[Entry]:
    """A rule of iptables that is there once, as long as the interface is up."""
    return [
        ("PostUp", f"iptables -w -t raw -C {rule} 2>/dev/null || iptables -w -t raw -I {rule}"),
        ("PostDown", f"iptables -w -t raw -D {rule} || true"),
    ]
