"""Commands that run on a host as on a real site's machine: with a name of its own and behind a firewall."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.hosts.network import address


def as_on_debian(host: int, names: Mapping[str, int], directory: Path, argv: Sequence[str]) -> list[str]:
    """The command, with an /etc/hosts of the host's own in which its names resolve to 127.0.1.1.

    Args:
        host: Its number in the cluster.
        names: Of all hosts, with the numbers of those that have them.
        directory: For that file.
        argv: The command.
    """
    lines = [f"{'127.0.1.1' if other == host else address(other)} {name}\n" for name, other in names.items()]
    hosts = directory / f"hosts{host}"
    hosts.write_text("127.0.0.1 localhost\n" + "".join(lines))
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
