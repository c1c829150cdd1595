"""A client dies, freezes or is cut off in the middle of an exchange, on real shaped links, one launcher a host.

Every rank that still runs must end within a limit, with an exit code other than 0 and an error that names client, round
and block. A freeze that is shorter than the limit must change nothing, not one bit.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from torch import Tensor, nn

from benchmarks.hosts import HostCluster
from benchmarks.hosts.network import address
from lightning_parablock.blocks.flat import hash_tensors
from tests.faults.worker import LOCAL_STEPS, Wide, loss_of, optimizer_of
from tests.oracle import OracleConfig, run_oracle
from tests.support.threads import on_one_thread

ROOT = Path(__file__).resolve().parents[2]
LIMIT_S = 200.0  # bounds a hang on a busy machine; the errors come within seconds of the limit in force
MID_EXCHANGE = r"step 4\b"  # the first round has just been submitted: a block of 1 MB at 4 Mbit/s takes 2 s and more
ERROR = r"Peer(Lost|Timeout)Error: round \d+, block 'layers\.[01]': client {client} \(rank {client} on .*\)"


@contextmanager
def cluster_of(n_hosts: int, topology: str, exchange_timeout_s: float, steps: int = 400) -> Iterator[HostCluster]:
    with HostCluster(n_hosts, rate="4mbit") as cluster:
        worker = ["-m", "tests.faults.worker", topology, str(exchange_timeout_s), str(steps)]
        for host in range(n_hosts):
            launcher = f"-m torch.distributed.run --nnodes {n_hosts} --node-rank {host} --nproc-per-node 1".split()
            rendezvous = ["--master-addr", address(0), "--master-port", "29500"]
            cluster.start(
                host, [sys.executable, *launcher, *rendezvous, *worker], env={"PYTHONPATH": str(ROOT)}, cwd=ROOT
            )
        yield cluster


def strike_after(cluster: HostCluster, host: int) -> None:
    cluster.wait_for_line(host, MID_EXCHANGE, timeout_s=LIMIT_S)
    time.sleep(0.5)


def assert_ended_naming(cluster: HostCluster, hosts: list[int], client: int) -> None:
    for host in hosts:
        running = cluster.hosts[host]
        status = running.wait(timeout_s=LIMIT_S)
        log = running.log_text()
        assert status not in (0, None), log
        assert re.search(ERROR.format(client=client), log), log


@pytest.mark.parametrize("topology", ["sharded", "star"])
def test_sigkill_in_an_exchange_ends_every_other_client_with_its_name(topology: str) -> None:
    with cluster_of(3, topology, exchange_timeout_s=600) as cluster:
        strike_after(cluster, 2)
        cluster.kill(2)
        assert_ended_naming(cluster, [0, 1], client=2)


def test_a_cut_link_ends_both_sides_after_the_limit() -> None:
    with cluster_of(2, "sharded", exchange_timeout_s=4) as cluster:
        strike_after(cluster, 1)
        cluster.cut_link(1)
        assert_ended_naming(cluster, [0], client=1)
        assert_ended_naming(cluster, [1], client=0)


def test_a_connection_of_a_generation_that_is_cut_while_both_wait_ends_at_both_ends() -> None:
    """No byte is under way, so the kernel would never notice it by itself."""
    with HostCluster(2) as cluster:
        start_members(cluster, silence_s=4, n_bytes=0)
        cluster.cut_link(1)
        for rank in range(2):
            cluster.wait_for_line(rank, "ended: ", timeout_s=LIMIT_S)


def test_a_connection_that_needs_longer_than_the_limit_for_one_message_is_not_given_up() -> None:
    rate_kbps, silence_s = 2000, 2
    n_bytes = 3 * silence_s * rate_kbps * 1000 // 8
    with HostCluster(2, rate=f"{rate_kbps}kbit") as cluster:
        start_members(cluster, silence_s=silence_s, n_bytes=n_bytes)
        for rank in range(2):
            cluster.wait_for_line(rank, rf"arrived: {n_bytes}\b", timeout_s=LIMIT_S)


def start_members(cluster: HostCluster, *, silence_s: int, n_bytes: int) -> None:
    """Two members of a generation, which wait for a message of so many bytes."""
    for rank in range(2):
        argv = [sys.executable, "-m", "tests.faults.worker_silent", str(rank), str(silence_s), str(n_bytes)]
        cluster.start(rank, argv, env={"PYTHONPATH": str(ROOT)}, cwd=ROOT)
    for rank in range(2):
        cluster.wait_for_line(rank, "waits", timeout_s=LIMIT_S)


def test_a_client_frozen_for_longer_than_the_limit_ends_the_others_and_itself_once_it_wakes() -> None:
    with cluster_of(3, "star", exchange_timeout_s=4) as cluster:
        strike_after(cluster, 2)
        cluster.stop(2)
        # Client 1 waits for the star's server, client 0; it must name the one that is frozen all the same.
        assert_ended_naming(cluster, [0, 1], client=2)
        cluster.resume(2)
        assert cluster.hosts[2].wait(timeout_s=LIMIT_S) not in (0, None)
        own = r"PeerTimeoutError: round \d+, block .*: this process, client 2 \(rank 2 on .*\), did not run for \d+ s"
        assert re.search(own, cluster.hosts[2].log_text())


def undisturbed_hash(n_clients: int, steps: int) -> str:
    """The weights' hash of a run that nothing disturbs: the oracle's."""

    def loss(model: nn.Module, client: int, step: int) -> Tensor:
        return loss_of(model.layers, client)  # type: ignore[arg-type]

    names = (("layers.0.weight",), ("layers.1.weight",))
    config = OracleConfig(
        names,
        tuple(t % 2 for t in range(steps)),
        n_clients,
        steps,
        local_steps=LOCAL_STEPS,
        delay_steps=LOCAL_STEPS,
    )
    with on_one_thread():
        weights = run_oracle(config, lambda: Wide(0), loss, optimizer_of).weights
    return hash_tensors(weights[name] for (name,) in names)


def test_a_client_frozen_for_less_than_the_limit_changes_no_bit() -> None:
    steps = 14  # three rounds and a short last one
    with cluster_of(2, "sharded", exchange_timeout_s=60, steps=steps) as cluster:
        strike_after(cluster, 1)
        cluster.stop(1)
        time.sleep(12)  # longer than the other limits that are in force while it trains: 10 s
        cluster.resume(1)
        assert cluster.wait(timeout_s=LIMIT_S) == [0, 0], cluster.hosts[0].log_text() + cluster.hosts[1].log_text()
        hashes = re.findall(r"hash (\w+)", "".join(host.log_text() for host in cluster.hosts.values()))
    assert hashes == [undisturbed_hash(2, steps)] * 2
