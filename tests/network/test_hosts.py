"""The launcher of namespaced hosts: links are shaped, faults happen, nothing is left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.hosts import Host, HostCluster, HostsError, HostsTimeoutError

REPOSITORY = Path(__file__).resolve().parents[2]
LIMIT_S = 30.0
MEGABYTE = 1_000_000
SLEEP = [sys.executable, "-S", "-c", "import time; print('here'); time.sleep(600)"]
RECEIVER = """
    import socket
    with socket.create_server(("", 5000)) as server:
        print("listening")
        connection, _ = server.accept()
        total = 0
        while chunk := connection.recv(1 << 16):
            total += len(chunk)
    print("received", total)
"""
SENDER = """
    import socket
    with socket.create_connection(("h0", 5000), timeout=20) as connection:
        connection.sendall(bytes(2_000_000))
"""
KNOCKER = """
    import socket
    try:
        socket.create_connection(("h0", 5000), timeout={timeout_s}).close()
        print("through")
    except OSError:
        print("blocked")
"""
LISTENER = """
    import socket, time
    server = socket.create_server(("", 5000))
    print("listening")
    time.sleep(600)
"""


def python(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", textwrap.dedent(code)]


def until(condition: Callable[[], bool]) -> bool:
    deadline = time.monotonic() + LIMIT_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def network_namespaces() -> set[int]:
    found: set[int] = set()
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            found.add(os.stat(f"/proc/{pid}/ns/net").st_ino)
        except OSError:
            continue
    return found


def pid_of(host: Host) -> int:
    assert host.pid is not None
    return host.pid


def test_bytes_pass_a_shaped_link_and_are_counted() -> None:
    with HostCluster(2, rate=["40mbit", "20mbit"]) as cluster:
        receiver = cluster.start(0, python(RECEIVER))
        cluster.wait_for_line(0, "listening", LIMIT_S)
        sender = cluster.start(1, python(SENDER))
        assert [sender.wait(LIMIT_S), receiver.wait(LIMIT_S)] == [0, 0]
        assert "received 2000000" in receiver.log_text()
        payload = 2 * MEGABYTE
        assert payload < cluster.bytes_sent(1) < 1.3 * payload
        assert payload < cluster.bytes_received(0) < 1.3 * payload
        assert cluster.bytes_sent(0) < 0.2 * payload
        up = cluster.shaping(1)["up"]
        assert up["rate_bps"] == 20 * MEGABYTE
        assert up["passed_bytes"] > payload
        assert up["delayed_packets"] > 0
        assert cluster.shaping(0)["down"]["rate_bps"] == 40 * MEGABYTE
        assert cluster.shaping(0)["down"]["passed_bytes"] > payload


def test_links_without_a_rate_are_not_shaped() -> None:
    with HostCluster(2, rate=["1gbit", None]) as cluster:
        assert cluster.shaping(0)["up"]["rate_bps"] == 1000 * MEGABYTE
        assert cluster.shaping(1) == {"up": None, "down": None}


def test_a_links_speed_can_be_changed() -> None:
    with HostCluster(2, rate=["1gbit", None]) as cluster:
        for host in range(2):
            cluster.set_rate(host, "20mbit")
            shaping = cluster.shaping(host)
            assert [shaping[way]["rate_bps"] for way in ("up", "down")] == [20 * MEGABYTE] * 2
        with pytest.raises(HostsError, match="'slow' is not understood"):
            cluster.set_rate(0, "slow")


def test_launch_environment_and_names() -> None:
    show = """
        import os, socket
        names = ["RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "MASTER_ADDR", "GLOO_SOCKET_IFNAME"]
        print([os.environ[name] for name in [*names, "OMP_NUM_THREADS", "MKL_NUM_THREADS", "EXTRA"]])
        print(socket.gethostname(), socket.gethostbyname("h0"), os.getpgrp() == os.getpid())
        print("cores", len(os.sched_getaffinity(0)))
    """
    with HostCluster(3, pin=True) as cluster:
        host = cluster.start(2, python(show), env={"EXTRA": "x"})
        assert host.wait(LIMIT_S) == 0
        first, second, third = host.log_text().splitlines()
    assert first == str(["2", "3", "0", "2", "10.77.0.1", "eth0", "1", "1", "x"])
    assert second == "h2 10.77.0.1 True"
    assert third == "cores 1"
    assert host.log_text().splitlines() == [first, second, third]


def test_a_folder_of_logs_may_have_spaces_in_its_name(tmp_path: Path) -> None:
    with HostCluster(1, log_dir=tmp_path / "a fault every minute") as cluster:
        assert cluster.start(0, python("print('here')")).wait(LIMIT_S) == 0
    logs = (tmp_path / "a fault every minute").glob("*-start0.log")
    assert [log.read_text() for log in logs] == ["here\n"]


def test_cut_link_blocks_and_restored_link_passes() -> None:
    with HostCluster(2) as cluster:
        cluster.start(0, python(LISTENER))
        cluster.wait_for_line(0, "listening", LIMIT_S)

        def knock(timeout_s: float) -> str:
            knocker = cluster.start(1, python(KNOCKER.format(timeout_s=timeout_s)))
            assert knocker.wait(LIMIT_S) == 0
            return knocker.log_text().strip()

        assert knock(LIMIT_S / 2) == "through"
        cluster.cut_link(1)
        assert knock(1.0) == "blocked"
        cluster.restore_link(1)
        assert knock(LIMIT_S / 2) == "through"


def test_kill_takes_every_process_of_one_host_only() -> None:
    family = "setsid sleep 600 & echo child $!; exec sleep 600"
    with HostCluster(2) as cluster:
        hosts = [cluster.start(i, ["sh", "-c", family]) for i in range(2)]
        for i in range(2):
            cluster.wait_for_line(i, r"child \d+", LIMIT_S)
        before = pid_of(hosts[0])
        cluster.kill(0)
        assert hosts[0].wait(LIMIT_S) == -signal.SIGKILL
        assert hosts[0].pid is None
        assert hosts[1].poll() is None
        assert not Path(f"/proc/{before}").exists()

        def sleepers_left() -> int:
            counting = cluster.start(0, ["sh", "-c", "cat /proc/[0-9]*/comm | grep -c '^sleep$'"])
            counting.wait(LIMIT_S)
            return int(counting.log_text())

        assert until(lambda: sleepers_left() == 2)  # both of host 1, none of host 0


def test_stop_freezes_and_resume_goes_on() -> None:
    with HostCluster(1) as cluster:
        host = cluster.start(0, SLEEP)
        cluster.wait_for_line(0, "here", LIMIT_S)
        cluster.stop(0)
        assert until(lambda: state(pid_of(host)) == "T")
        assert host.poll() is None
        cluster.resume(0)
        assert until(lambda: state(pid_of(host)) == "S")
        host.send_signal(signal.SIGTERM)
        assert host.wait(LIMIT_S) == -signal.SIGTERM


def test_waiting_has_a_limit_and_shows_the_log() -> None:
    with HostCluster(1) as cluster:
        host = cluster.start(0, SLEEP)
        cluster.wait_for_line(0, "here", LIMIT_S)
        with pytest.raises(HostsTimeoutError, match=r"(?s)host 0 still runs.*here"):
            host.wait(0.05)
        with pytest.raises(HostsTimeoutError, match=r"(?s)no line matching 'never'.*here"):
            cluster.wait_for_line(0, "never", 0.05)
        cluster.kill(0)
        with pytest.raises(HostsError, match="before it ended with -9"):
            cluster.wait_for_line(0, "never", LIMIT_S)


def test_two_clusters_at_once_and_nothing_is_left() -> None:
    before = network_namespaces()
    with HostCluster(2, rate="100mbit") as one, HostCluster(2, rate="100mbit") as other:
        hosts = [cluster.start(i, SLEEP) for cluster in (one, other) for i in range(2)]
        for cluster in (one, other):
            for i in range(2):
                cluster.wait_for_line(i, "here", LIMIT_S)
        pids = [pid_of(host) for host in hosts]
        directories = [one.directory, other.directory]
        assert len(set(pids)) == 4
        assert len(network_namespaces() - before) >= 4
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    assert not [directory for directory in directories if directory.exists()]
    assert until(lambda: network_namespaces() <= before)
    with pytest.raises(HostsError, match="closed"):
        one.start(0, SLEEP)


def test_nothing_outlives_a_killed_caller() -> None:
    code = f"""
        import time
        from benchmarks.hosts import HostCluster
        with HostCluster(2, rate="100mbit") as cluster:
            hosts = [cluster.start(i, {SLEEP!r}) for i in range(2)]
            print(cluster.directory, *(host.pid for host in hosts), flush=True)
            time.sleep(600)
    """
    caller = subprocess.Popen(
        [sys.executable, "-S", "-c", textwrap.dedent(code)], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True
    )
    assert caller.stdout is not None
    with caller.stdout:
        directory, *pids = caller.stdout.readline().split()
    assert len(pids) == 2
    assert Path(directory).is_dir()
    caller.kill()
    caller.wait(LIMIT_S)
    assert until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids))
    assert until(lambda: not Path(directory).exists())


def test_a_machine_without_namespaces_gets_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    refusing = tmp_path / "unshare"
    refusing.write_text("#!/bin/sh\necho 'unshare: unshare failed: Operation not permitted' >&2\nexit 1\n")
    refusing.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(HostsError, match=r"either root or user namespaces.*Operation not permitted"), HostCluster(2):
        pass


@pytest.mark.parametrize(
    ("n", "rate", "message"),
    [(0, None, "1 to 250 hosts"), (2, ["1mbit"], "1 rates given for 2 hosts"), (2, "fast", "'fast' is not understood")],
)
def test_wrong_arguments_are_named(n: int, rate: str | list[str | None] | None, message: str) -> None:
    with pytest.raises(HostsError, match=message):
        HostCluster(n, rate=rate)


def test_a_program_that_does_not_exist_is_an_error() -> None:
    with HostCluster(1) as cluster:
        with pytest.raises(HostsError, match="no-such-program"):
            cluster.start(0, ["no-such-program"])
        with pytest.raises(HostsError, match="there is no host 1"):
            cluster.start(1, SLEEP)


def test_command_line_prefixes_output_and_passes_the_first_failure_on() -> None:
    command = ["-n", "2", "--rate", "10mbit,20mbit", "--", "sh", "-c", "echo rank {rank} of {n}; exit 3{rank}"]
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.hosts", *command], cwd=REPOSITORY, capture_output=True, text=True, timeout=60
    )
    assert sorted(done.stdout.splitlines()) == ["[h0] rank 0 of 2", "[h1] rank 1 of 2"]
    assert done.returncode == 30
