"""Hosts as real sites have them: their own names resolve to 127.0.1.1, as Debian's do, and firewalls guard them."""

from __future__ import annotations

import sys
from pathlib import Path

from benchmarks.hosts import HostCluster
from benchmarks.hosts.network import address
from tests.network import worker_addresses
from tests.network.sites_hosts import as_on_debian, behind_firewall

LIMIT_S = 120.0
N_HOSTS = 2
NAMES = {"h0": 0, "h1": 1}
COMMAND = [sys.executable, "-m", worker_addresses.__name__]
ENVIRONMENT = {"MASTER_ADDR": "h0", "GLOO_SOCKET_IFNAME": ""}
RENDEZVOUS, PORTS = "29500", str(worker_addresses.PORTS)


def test_names_that_resolve_to_loopback_and_closed_ports_do_not_matter(tmp_path: Path) -> None:
    with HostCluster(N_HOSTS) as cluster:
        for host in range(N_HOSTS):
            command = behind_firewall([RENDEZVOUS, PORTS], COMMAND)
            cluster.start(host, as_on_debian(host, NAMES, tmp_path, command), env=ENVIRONMENT)
        statuses = cluster.wait(LIMIT_S)
        logs = [cluster.hosts[host].log_text() for host in range(N_HOSTS)]
    assert statuses == [0, 0], logs
    for host, log in enumerate(logs):
        assert f"listens at [('{address(host)}', " in log
        assert "maximum 1" in log


def test_a_port_that_is_closed_is_named_on_both_sides_at_once() -> None:
    with HostCluster(N_HOSTS) as cluster:
        cluster.start(0, behind_firewall([RENDEZVOUS], COMMAND, reaches=[RENDEZVOUS, PORTS]), env=ENVIRONMENT)
        cluster.start(1, COMMAND, env=ENVIRONMENT)
        statuses = cluster.wait(LIMIT_S)
        logs = [" ".join(cluster.hosts[host].log_text().split()) for host in range(N_HOSTS)]
    assert statuses == [1, 1], logs
    for log in logs:
        assert "refused: site b (pid " in log
        assert "on h1) cannot connect to site a (pid " in log
        assert f"at {address(0)}:40" in log
        assert "timed out; open this way in the firewall" in log
