"""Hosts on one machine, each in its own network namespace, joined by links of a chosen speed.

    with HostCluster(2, rate="100mbit") as cluster:
        hosts = [cluster.start(i, [sys.executable, "train.py"]) for i in range(2)]
        cluster.wait_for_line(0, r"round 3", timeout_s=60)
        cluster.cut_link(1)
        statuses = [host.wait(timeout_s=60) for host in hosts]

or ``python -m benchmarks.hosts -n 2 --rate 100mbit -- CMD {rank}``. Linux with iproute2 and util-linux; root, or user
namespaces. No link leads off the machine. Nothing outlives the process that opened the cluster, not even after SIGKILL.
"""

from benchmarks.hosts.cluster import HostCluster
from benchmarks.hosts.errors import HostsError, HostsTimeoutError
from benchmarks.hosts.host import Host
from benchmarks.hosts.network import address

__all__ = ["Host", "HostCluster", "HostsError", "HostsTimeoutError", "address"]
