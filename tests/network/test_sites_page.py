"""docs/sites.md, run as it is written: three sites on hosts of their own, with their own rows and firewalls."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.hosts import Host, HostCluster
from lightning_parablock.blocks.flat import hash_tensors
from tests.network.sites_hosts import as_on_debian, behind_firewall
from tests.support.launch import ROOT
from tests.support.pages import labelled_blocks
from tests.unit.tiny_text import save_tiny_llama

PAGE = ROOT / "docs" / "sites.md"
ROWS = {"a": 200, "b": 260, "c": 320}
SITES = tuple(ROWS)
LIMIT_S = 300.0
LAUNCHERS_VARIABLES = (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
    "NODE_RANK",
    "MASTER_ADDR",
    "MASTER_PORT",
    "GLOO_SOCKET_IFNAME",
)


def open_ports() -> dict[str, list[str]]:
    """The ports of the page's table, by site."""
    table = re.findall(r"^\| (site a|every site)[^|]*\| TCP ([\d-]+) \|", PAGE.read_text(), re.MULTILINE)
    return {site: [ports for at, ports in table if at in (f"site {site}", "every site")] for site in SITES}


def within(port: int, ports: str) -> bool:
    """Whether the port is the one, or in the range, of the text."""
    first, _, last = ports.partition("-")
    return int(first) <= port <= int(last or first)


def listening_ports(pid: int | None) -> list[int]:
    """The TCP ports on which anything listens in the network of a process."""
    tables = [Path(f"/proc/{pid}/net/{name}").read_text().splitlines()[1:] for name in ("tcp", "tcp6")]
    fields = [line.split() for table in tables for line in table]
    return [int(local.rpartition(":")[2], 16) for _, local, _, state, *_ in fields if state == "0A"]


def newest(folder: Path, pattern: str) -> Path:
    return max(folder.glob(pattern), key=lambda path: path.stat().st_mtime_ns)


def hash_of_model(path: Path) -> str:
    weights = torch.load(path, weights_only=True)["state_dict"]
    return hash_tensors(weights[name] for name in sorted(weights))


def printed_command(log: str, before: str) -> str:
    """The command line that the log gives after some words."""
    (line,) = {line.partition(before)[2] for line in log.splitlines() if before in line}
    return line.partition(" (traceback: ")[0]


class Sites:
    """The three sites on a cluster, each with a folder that holds what the page says, and a model."""

    def __init__(self, cluster: HostCluster, folder: Path) -> None:
        self.cluster, self._folder, self._blocks = cluster, folder, labelled_blocks(PAGE)
        for site in SITES:
            self.folder(site).mkdir()
            if site == "a":
                self.run(site, self.block("init"))
            else:
                shutil.copy(self.folder("a") / "run.yaml", self.folder(site))
            save_tiny_llama(self.folder(site) / "model", hidden_size=64, intermediate_size=128)
            self.run(site, self.block(f"site {site}: rows"))

    def folder(self, site: str) -> Path:
        return self._folder / site

    def block(self, label: str) -> str:
        return self._blocks[label]

    def run(self, site: str, command: str) -> None:
        host = self.start(site, command)
        assert host.wait(LIMIT_S) == 0, host.log_text()

    def start(self, site: str, line: str) -> Host:
        """Start a command line in the site's folder, behind the firewall of the page's table."""
        index = SITES.index(site)
        unset = [word for name in LAUNCHERS_VARIABLES for word in ("-u", name)]
        command = ["env", *unset, "sh", "-c", line]
        if index not in self.cluster.hosts:  # the firewall stays
            command = behind_firewall(open_ports()[site], command, reaches=open_ports()["a"])
        names = {f"{other}.example.org": i for i, other in enumerate(SITES)}
        path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        env = {"PATH": path, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        command = as_on_debian(index, names, self._folder, command)
        return self.cluster.start(index, command, env=env, cwd=self.folder(site))

    def start_all(self) -> None:
        for site in SITES:
            self.start(site, self.block(f"site {site}"))

    def slow_down(self) -> None:
        """Links on which a round takes about a second."""
        for host in range(len(SITES)):
            self.cluster.set_rate(host, "1mbit")

    def listening_while(self, line: str) -> dict[str, list[int]]:
        """The TCP ports on which anything listens at each site, once it has printed the line."""
        found: dict[str, list[int]] = {}
        for index, site in enumerate(SITES):
            self.cluster.wait_for_line(index, line, LIMIT_S)
            found[site] = listening_ports(self.cluster.hosts[index].pid)
        return found

    def log(self, site: str) -> str:
        return self.cluster.hosts[SITES.index(site)].log_text()


@pytest.fixture(scope="module")
def sites(tmp_path_factory: pytest.TempPathFactory) -> Generator[Sites]:
    with HostCluster(len(SITES)) as cluster:
        yield Sites(cluster, tmp_path_factory.mktemp("sites"))


def result(folder: Path, site: str) -> dict[str, Any]:
    """The manifest of the site's newest run."""
    return json.loads(newest(folder, f"runs/*/{site}/manifest.json").read_text())


def test_all_rows_are_used_and_all_sites_have_one_model(sites: Sites) -> None:
    sites.start_all()
    listening = sites.listening_while("round 0 ")
    statuses = sites.cluster.wait(LIMIT_S)
    assert statuses == [0, 0, 0], [sites.log(site) for site in SITES]

    manifests = {site: result(sites.folder(site), site) for site in SITES}
    for site, rows in ROWS.items():
        log = sites.log(site)
        assert f"site {site}: {rows} of {rows} rows" in log
        assert f"site {site}  round 9 (10 of 10 done)" in log
        assert "[c10d]" not in log
        assert "held-out loss" in log and f"(site {site}: " in log
        assert manifests[site]["state"] == "finished"
        assert manifests[site]["site"] == site
    (weights,) = {manifest["result"]["weights_sha256"] for manifest in manifests.values()}
    assert all(f"weights: sha256 {weights[:16]}, the same on every client" in sites.log(site) for site in SITES)
    files = [hash_of_model(newest(sites.folder(site), f"runs/*/{site}/checkpoints/final.ckpt")) for site in SITES]
    assert len(set(files)) == 1

    for site, ports in listening.items():
        assert ports and all(any(within(port, allowed) for allowed in open_ports()[site]) for port in ports), listening
    assert [29500 in listening[site] for site in SITES] == [True, False, False]


def test_ctrl_c_at_one_site_stops_all_and_a_lost_site_is_named(sites: Sites) -> None:
    sites.slow_down()
    sites.start_all()
    sites.cluster.wait_for_line(SITES.index("c"), r"site c  round 1 ", LIMIT_S)
    sites.cluster.hosts[SITES.index("c")].send_signal(signal.SIGINT)
    assert sites.cluster.wait(LIMIT_S)[:2] == [1, 1], [sites.log(site) for site in SITES]
    assert "interrupted: Ctrl-C" in sites.log("c")
    commands = {site: printed_command(sites.log(site), "to continue exactly from there: ") for site in SITES}

    for site, command in commands.items():
        assert f"--site {site} " in command
        sites.start(site, command)
    sites.cluster.wait_for_line(SITES.index("b"), r"site b  round [3-9] ", LIMIT_S)
    sites.cluster.kill(SITES.index("b"))
    statuses = sites.cluster.wait(LIMIT_S)
    assert statuses[0] == statuses[2] == 1
    for site in ("a", "c"):
        log = sites.log(site)
        assert re.search(r"error: round \d+, block '[\w.]+': .*site b \(client 1, rank 1 on h1\)", log), log
        path = newest(sites.folder(site), f"runs/*/{site}/rescued*.ckpt")
        command = printed_command(log, "to continue from it: ")
        assert f"--ckpt_path {path.relative_to(sites.folder(site))} --strategy.missing_client_state fresh" in command


def test_the_page_shows_the_file_that_init_writes(sites: Sites) -> None:
    assert (sites.folder("c") / "run.yaml").read_text() == labelled_blocks(PAGE)["run.yaml"]


def test_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\(([\w.-]+\.md)", PAGE.read_text()):
        assert (PAGE.parent / link).is_file(), link
