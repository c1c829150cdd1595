"""Commands that run on a host as on a real site's machine: with a name of its own and behind a firewall."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.host_network import address


def as_on_debian(host: int, n_hosts: int, directory: Path, argv: Sequence[str]) -> list[str]:
    """The command, with an /etc/hosts of the host's own in which its name resolves to 127.0.1.1."""
    names = [("127.0.1.1" if other == host else address(other), f"h{other}") for other in range(n_hosts)]
    hosts = directory / f"hosts{host}"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(f"{where} {name}\n" for where, name in names))
    return ["unshare", "-m", "sh", "-c", f'mount --bind {hosts} /etc/hosts && exec "$@"', "sh", *argv]


def behind_firewall(ports: Sequence[str], argv: Sequence[str], *, reaches: Sequence[str] | None = None) -> list[str]:
    """The command, on a host that drops every TCP packet but those to its own ``ports`` and those that answer it.

    Args:
        ports: On which the host accepts connections; ports or ranges such as ``40000-40099``.
        argv: The command.
        reaches: Ports of other hosts to which it may connect; ``ports`` where it is None.
    """
    allowed = [f"dport {port}" for port in ports] + [
        f"sport {port}" for port in (ports if reaches is None else reaches)
    ]
    # Routing rules, since every Linux with iproute2 has them: what is not looked up as local is not delivered.
    rules = [f"ip rule add pref 10 iif eth0 ipproto tcp {one} lookup local" for one in allowed]
    rules += ["ip rule add pref 20 iif eth0 ipproto tcp blackhole", "ip rule add pref 30 lookup local"]
    return ["sh", "-c", " && ".join([*rules, "ip rule del pref 0", 'exec "$@"']), "sh", *argv]
