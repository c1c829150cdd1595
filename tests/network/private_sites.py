"""A hub, three sites and a stranger on hosts of their own, with the commands of docs/sites.md and WireGuard."""

from __future__ import annotations

import os
import shutil
import socket
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.hosts import Host, HostCluster, address
from tests.support.launch import ROOT
from tests.support.pages import labelled_blocks
from tests.unit.tiny_text import save_tiny_llama

PAGE = ROOT / "docs" / "sites.md"
HUB, STRANGER = "hub", "stranger"
SITES = ("a", "b", "c")
MACHINES = (HUB, *SITES, STRANGER)
"""In the order of their hosts' numbers."""
HIDDEN = ("a", "b")
"""Behind routers, with equal private addresses. Site c has a public address, and opens no port."""
HOME = "/home/ward"
"""Of the page's user."""
LIMIT_S = 300.0
LAUNCHERS_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
INTERFACE_VARIABLE = "GLOO_SOCKET_IFNAME"


def number(machine: str) -> int:
    """Number of a machine's host."""
    return MACHINES.index(machine)


class PrivateSites:
    """The machines on a cluster, each with a folder and a home of its own.

    Args:
        cluster: Its hosts, with those of :data:`HIDDEN` behind routers.
        folder: Where the machines' folders are.
    """

    def __init__(self, cluster: HostCluster, folder: Path) -> None:
        self.cluster, self._folder = cluster, folder
        self._blocks = labelled_blocks(PAGE)
        for machine in MACHINES:
            for part in ("home", "wireguard"):
                (self.folder(machine) / part).mkdir(parents=True)
            names = f"127.0.0.1 localhost\n{address(number(HUB))} hub.example.org\n"
            (self.folder(machine) / "hosts").write_text(names)

    @staticmethod
    def open() -> HostCluster:
        """The cluster, to be entered."""
        return HostCluster(len(MACHINES), behind_nat=[number(site) for site in HIDDEN])

    def folder(self, machine: str) -> Path:
        """Where the machine's commands run."""
        return self._folder / machine

    def keys(self, site: str) -> Path:
        """Folder of a site's keys."""
        return self.folder(site) / "home" / ".lightning-parablock" / site

    def block(self, label: str) -> str:
        """The commands of a block of the page."""
        return self._blocks[label]

    def start(self, machine: str, line: str, *, said: str = "", env: Mapping[str, str] | None = None) -> Host:
        """Start command lines on a machine.

        Args:
            machine: Its name.
            line: For the shell; the page's home becomes the machine's.
            said: What the user types.
            env: Further variables.
        """
        here = self.folder(machine)
        unset = [word for name in (*LAUNCHERS_VARIABLES, INTERFACE_VARIABLE) for word in ("-u", name)]
        own = (
            f"mount --bind {here / 'hosts'} /etc/hosts && mkdir -p /run/wireguard && "
            f'mount --bind {here / "wireguard"} /run/wireguard && exec "$@"'
        )
        typed = here / "typed"
        typed.write_text(said)
        command = ["unshare", "-m", "sh", "-c", own, "sh", "env", *unset]
        variables = {
            "PATH": f"{Path(sys.executable).parent}:/usr/sbin:/sbin:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "HOME": str(here / "home"),
            "COLUMNS": "200",
            # Where the kernel has no WireGuard, wg-quick takes the one in user space.
            "WG_I_PREFER_BUGGY_USERSPACE_TO_POLISHED_KMOD": "1",
        }
        command += ["sh", "-e", "-c", f"exec < {typed}\n{line.replace(HOME, variables['HOME'])}"]
        return self.cluster.start(number(machine), command, env={**variables, **(env or {})}, cwd=here)

    def run(self, machine: str, line: str, *, said: str = "", status: int = 0) -> str:
        """Run command lines to their end; returns what they printed."""
        host = self.start(machine, line, said=said)
        assert host.wait(LIMIT_S) == status, host.log_text()
        return host.log_text()

    def give(self, name: str, source: str, target: str, new_name: str | None = None) -> None:
        """Mail a file from one machine to another."""
        shutil.copy(self.folder(source) / name, self.folder(target) / (new_name or name))

    def add_model_and_rows(self, site: str, n_rows: int) -> None:
        """A model, and rows that no other site has."""
        save_tiny_llama(self.folder(site) / "model", hidden_size=64, intermediate_size=128)
        rows = [f'{{"prompt": "{i} and {i}?", "answer": "{site} {i * 2}"}}\n' for i in range(n_rows)]
        (self.folder(site) / "mine.jsonl").write_text("".join(rows))


def listening_at(pid: int | None) -> set[str]:
    """Addresses at which anything listens by TCP in the network of a process."""
    found = set[str]()
    for table, family in (("tcp", socket.AF_INET), ("tcp6", socket.AF_INET6)):
        rows = [line.split() for line in Path(f"/proc/{pid}/net/{table}").read_text().splitlines()[1:]]
        for _, local, _, state, *_ in rows:
            words = bytes.fromhex(local.partition(":")[0])  # 32 bits each, in this machine's order
            data = b"".join(words[at : at + 4][::-1] for at in range(0, len(words), 4))
            if state == "0A":
                found.add(socket.inet_ntop(family, data))
    return found
