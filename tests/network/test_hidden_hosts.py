"""Hosts behind routers: equal private addresses, a way out, and none in."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Generator

import pytest

from benchmarks.hosts import HostCluster, HostsError, address
from benchmarks.hosts.routers import PRIVATE_ADDRESS

LIMIT_S = 30.0
HUB, HIDDEN, ALSO_HIDDEN = range(3)
SERVER = """
    import socket
    with socket.create_server(("", 5000)) as server:
        print("listening", flush=True)
        while True:
            connection, (source, _) = server.accept()
            connection.sendall(source.encode())
            connection.close()
"""
CLIENT = """
    import socket, sys
    try:
        with socket.create_connection((sys.argv[1], 5000), timeout=2) as connection:
            print("own", connection.getsockname()[0], "seen as", connection.recv(100).decode())
    except OSError as error:
        print("refused", type(error).__name__)
"""


def python(code: str, *words: str) -> list[str]:
    return [sys.executable, "-S", "-c", textwrap.dedent(code), *words]


@pytest.fixture(scope="module")
def cluster() -> Generator[HostCluster]:
    with HostCluster(3, behind_nat=[HIDDEN, ALSO_HIDDEN]) as cluster:
        for host in range(3):
            cluster.start(host, python(SERVER))
            cluster.wait_for_line(host, "listening", LIMIT_S)
        yield cluster


def said(cluster: HostCluster, host: int, target: str) -> str:
    client = cluster.start(host, python(CLIENT, target))
    assert client.wait(LIMIT_S) == 0, client.log_text()
    return client.log_text().strip()


def test_hidden_hosts_reach_the_others_under_the_address_of_their_router(cluster: HostCluster) -> None:
    for host in (HIDDEN, ALSO_HIDDEN):
        assert said(cluster, host, address(HUB)) == f"own {PRIVATE_ADDRESS} seen as {address(host)}"


def test_no_host_reaches_a_hidden_one(cluster: HostCluster) -> None:
    for host in (HUB, ALSO_HIDDEN):
        assert said(cluster, host, address(HIDDEN)).startswith("refused")
    assert said(cluster, HUB, PRIVATE_ADDRESS).startswith("refused")
    assert said(cluster, ALSO_HIDDEN, PRIVATE_ADDRESS) == f"own {PRIVATE_ADDRESS} seen as {PRIVATE_ADDRESS}"  # itself


def test_the_switch_shows_every_packet_between_hosts(cluster: HostCluster) -> None:
    watcher = cluster.start_at_switch(["tcpdump", "-i", "br0", "-l", "-n", "-U", "tcp"])
    watcher.wait_for_line("listening on br0", LIMIT_S)
    said(cluster, HIDDEN, address(HUB))
    watcher.wait_for_line(rf"IP {address(HIDDEN)}\.\d+ > {address(HUB)}\.5000", LIMIT_S)


def test_a_router_of_a_host_that_is_not_there_is_refused() -> None:
    with pytest.raises(HostsError, match="there is no host 2"):
        HostCluster(2, behind_nat=[2])
