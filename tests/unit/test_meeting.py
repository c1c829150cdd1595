"""How ranks meet: names, numbers, and the refusal of one that does not belong there. Stores are real, ranks threads."""

from __future__ import annotations

import itertools
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
from lightning.fabric.plugins.environments import LightningEnvironment, SLURMEnvironment, TorchElasticEnvironment
from lightning.pytorch import Trainer
from torch.distributed.distributed_c10d import PrefixStore

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.checks import check_site_name
from lightning_parablock.cli.spellings import expand_argv
from lightning_parablock.errors import ConfigurationError, PeerLostError, PeerTimeoutError
from lightning_parablock.launching import joining
from lightning_parablock.launching.joining import job_of
from lightning_parablock.launching.site_environment import SiteEnvironment
from lightning_parablock.meeting import rendezvous
from lightning_parablock.meeting.introductions import (
    NO_NUMBER,
    Introduction,
    Meeting,
    in_order,
    is_dead,
    this_system,
)
from lightning_parablock.meeting.meeting import MeetingTable
from lightning_parablock.meeting.rendezvous import Address, connect_store, host_store, open_store
from lightning_parablock.membership.membership import Membership
from lightning_parablock.runs.run import Run
from lightning_parablock.system import limited_wait
from lightning_parablock.system.limited_wait import LimitedWait
from tests.support.cli_toys import Toy, ToyData
from tests.support.launch import ROOT, free_port

_MPI_NAMES = ("RANK", "SIZE", "LOCAL_RANK", "LOCAL_SIZE")


def rank_of(rank: int, site: str | None = None, n_ranks: int = 3) -> Introduction:
    return Introduction(rank, n_ranks, site, f"host{rank}", 100 + rank)


class Hall:
    """A real store where ranks meet, each in a thread of its own."""

    def __init__(self) -> None:
        self.address = Address("127.0.0.1", free_port())
        self._store = host_store(self.address)
        self.said: list[str] = []
        self._results: dict[Introduction, list[Meeting | Exception]] = {}
        self._threads: list[threading.Thread] = []

    def come(self, one: Introduction, limit_s: float = 60.0) -> Meeting:
        wait = LimitedWait(limit_s, self.said.append)
        return MeetingTable(connect_store(self.address, wait), one, str(self.address)).meet(wait)

    def wait(self, *ranks: Introduction) -> None:
        """Let these ranks come and wait, and return when they are there."""
        store = PrefixStore("meeting", connect_store(self.address, LimitedWait(60.0)))
        for one in ranks:
            thread = threading.Thread(target=self._keep, args=(one,))
            self._threads.append(thread)
            thread.start()
            while not store.check([f"site {one.site}" if one.site else f"rank {one.rank}"]):
                time.sleep(0.01)

    def results(self) -> list[Meeting | Exception]:
        for thread in self._threads:
            thread.join(120.0)
        return [result for results in self._results.values() for result in results]

    def _keep(self, one: Introduction) -> None:
        kept = self._results.setdefault(one, [])
        try:
            kept.append(self.come(one))
        except Exception as error:
            kept.append(error)


@pytest.mark.parametrize("launched", list(itertools.permutations("abc")))
def test_numbers_follow_the_sorted_names_whatever_the_launcher_said(launched: tuple[str, ...]) -> None:
    ranks = [rank_of(rank, site) for rank, site in enumerate(launched)]
    assert [one.site for one in in_order(ranks)] == ["a", "b", "c"]
    assert in_order(ranks) == in_order(ranks[::-1])


def test_without_names_the_launchers_numbers_stay() -> None:
    assert in_order([rank_of(2), rank_of(0), rank_of(1)]) == (rank_of(0), rank_of(1), rank_of(2))


def test_all_name_their_site_or_none_does() -> None:
    with pytest.raises(
        ConfigurationError, match=r"site b \(pid 101 on host1\) has one, .*rank 0 .*, rank 2 .* has none"
    ):
        in_order([rank_of(0), rank_of(1, "b"), rank_of(2)])


def test_two_sites_with_one_name_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"site name 'a': pid 100 on host0 and pid 102 on host2"):
        in_order([rank_of(0, "a"), rank_of(1, "b"), rank_of(2, "a")])


@pytest.mark.parametrize("name", ["a", "Site-1", "hospital.example_org", "7", "x" * 64])
def test_names_that_a_site_may_have(name: str) -> None:
    check_site_name(name)


@pytest.mark.parametrize("name", ["", "a b", "ä", "-a", ".a", "a/b", "a\n", "x" * 65, 7])
def test_names_that_a_site_may_not_have(name: Any) -> None:
    with pytest.raises(ConfigurationError, match="site must be a name of 1 to 64 letters"):
        ParaBlockStrategy(site=name)


def test_what_describes_a_rank_names_its_site() -> None:
    members = Membership(0, ("h0", "h1"), ((0,), (1,)), 0, ("a", "b"))
    assert members.describe(1) == "site b (client 1, rank 1 on h1)"
    assert replace(members, sites=()).describe(1) == "client 1 (rank 1 on h1)"


def test_the_flag_is_the_strategys_option() -> None:
    assert expand_argv(["fit", "--site", "a"]) == ["fit", "--trainer.strategy.site", "a"]
    assert expand_argv(["fit", "--site=a"]) == ["fit", "--trainer.strategy.site=a"]
    assert expand_argv(["fit", "--site", "a"], own_help=False) == ["fit", "--site", "a"]


def test_three_sites_meet() -> None:
    hall = Hall()
    hall.wait(rank_of(0, "c"), rank_of(1, "a"))
    assert hall.come(rank_of(2, "b")).rank == 1
    met = hall.results()
    assert all(isinstance(one, Meeting) and one.site_names == ("a", "b", "c") for one in met), met
    assert [one.rank for one in met if isinstance(one, Meeting)] == [2, 0]
    assert len({one.run_id for one in met if isinstance(one, Meeting)}) == 1


def test_without_a_launcher_the_names_alone_give_the_numbers() -> None:
    hall = Hall()
    hall.wait(rank_of(NO_NUMBER, "c"), replace(rank_of(NO_NUMBER, "a"), pid=7))
    last = hall.come(replace(rank_of(NO_NUMBER, "b"), pid=8))
    assert (last.rank, last.site_names) == (1, ("a", "b", "c"))
    with pytest.raises(
        ConfigurationError, match=r"site d .* all 3 \(num_nodes\) have come: site c .*, site a .*, site b"
    ):
        hall.come(replace(rank_of(NO_NUMBER, "d"), pid=9))
    assert all(isinstance(one, Meeting) for one in hall.results())


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        (replace(rank_of(2, "b"), pid=9, host="there"), r"site b \(pid 9 on there\) cannot join .*name is taken"),
        (replace(rank_of(1, "x"), pid=9, host="there"), r"number is taken by pid 101 on host1"),
        (rank_of(2), r"rank 2 .* it has no name, and the others have names; give every process its own --site NAME"),
        (replace(rank_of(2, "x"), n_ranks=4), r"that is a run of 3 processes, and this is a run of 4 processes"),
        (replace(rank_of(2, "x"), job="77"), r"this is a run of 3 processes \(job 77\)"),
    ],
)
def test_one_that_does_not_belong_there_is_refused_alone(stray: Introduction, why: str) -> None:
    hall = Hall()
    hall.wait(rank_of(0, "a"), rank_of(1, "b"))
    with pytest.raises(ConfigurationError, match=why):
        hall.come(stray)
    # Neither its name nor its number is lost to it.
    assert hall.come(rank_of(2, "x")).site_names == ("a", "b", "x")
    assert all(isinstance(one, Meeting) for one in hall.results())


def test_one_that_gives_up_leaves_its_seat_and_names_who_is_missing() -> None:
    hall = Hall()
    hall.wait(rank_of(0, "a"))
    with pytest.raises(ConfigurationError):
        hall.come(rank_of(1))
    told = (
        r"ranks 2 of 3 \(here: site a \(pid 100 on host0\), .*; refused: rank 1 .* cannot join .*\) did not come to 127"
    )
    with pytest.raises(PeerTimeoutError, match=told.replace("ranks", "rank")):
        hall.come(rank_of(1, "b"), limit_s=0.0)
    hall.wait(rank_of(1, "b2"))
    assert hall.come(rank_of(2, "c")).site_names == ("a", "b2", "c")


def test_without_a_launcher_missing_sites_are_counted_and_those_that_are_there_named() -> None:
    hall = Hall()
    hall.wait(rank_of(NO_NUMBER, "c", 2))
    with pytest.raises(
        PeerTimeoutError, match=r"^2 of 3 sites \(here: site a \(pid 9 on host-1\)\) did not come to 127"
    ):
        Hall().come(replace(rank_of(NO_NUMBER, "a"), pid=9), limit_s=0.0)
    assert hall.come(replace(rank_of(NO_NUMBER, "d", 2), pid=9)).rank == 1


def test_a_process_that_was_killed_while_it_waited_can_be_started_again() -> None:
    hall = Hall()
    killed = subprocess.run([sys.executable, "-S", "-c", "import os; print(os.getpid())"], capture_output=True)
    here = this_system()
    hall.wait(replace(rank_of(NO_NUMBER, "a", 2), system=here, pid=int(killed.stdout)))
    again = replace(rank_of(NO_NUMBER, "a", 2), system=here, pid=os.getpid())
    hall.wait(again)
    assert hall.come(rank_of(NO_NUMBER, "b", 2)).ranks[0].pid == os.getpid()
    hall.results()


def test_two_containers_of_one_host_name_and_one_pid_are_two_processes() -> None:
    hall = Hall()
    ranks = [replace(rank_of(NO_NUMBER, site, 3), host="debian", pid=1, system=f"system-{site}") for site in "cab"]
    for rank in ranks[:2]:
        hall.wait(rank)
    meeting = hall.come(ranks[2])
    hall.results()
    assert meeting.site_names == ("a", "b", "c") and meeting.rank == 1
    # A pid that this system does not know may well be alive in another one.
    assert not is_dead(replace(ranks[0], pid=2**22 + 1).seat)
    assert is_dead(replace(ranks[0], pid=2**22 + 1, system=this_system()).seat)


def test_a_job_belongs_to_the_launcher_that_started_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "my-run")
    assert job_of(SiteEnvironment(Address("hub", 29500))) == ""  # each site may have a job of its own
    assert job_of(LightningEnvironment()) == ""
    assert job_of(TorchElasticEnvironment()) == "my-run"
    assert job_of(SLURMEnvironment()) == "7"


def test_a_wait_reports_after_5_s_and_then_every_15(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = [0.0]
    monkeypatch.setattr(limited_wait.time, "monotonic", lambda: now_s[0])
    said: list[str] = []
    wait = LimitedWait(60.0, said.append)
    for second in range(61):
        now_s[0] = float(second)
        wait.report(lambda: "site b at hub:29500")
    assert said == [f"parablock: waiting for site b at hub:29500; gives up in {left} s" for left in (55, 40, 25, 10)]
    assert wait.is_over


def test_the_limit_of_a_host_ends_the_meeting_for_all() -> None:
    hall = Hall()
    store = connect_store(hall.address, LimitedWait(60.0))
    hall.wait(rank_of(1, "b"))
    with pytest.raises(PeerTimeoutError):
        MeetingTable(store, rank_of(0, "a"), "hub", hosts_store=True).meet(LimitedWait(0.0))
    (lost,) = hall.results()
    assert isinstance(lost, PeerLostError)
    assert "is over: site a (pid 100 on host0), which hosts the meeting, gave up: rank 2 of 3" in str(lost)


# --- the store --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [("hub:1", "hub", 1), ("10.0.0.1:29500", "10.0.0.1", 29500), ("[::1]:65535", "::1", 65535)],
)
def test_addresses(text: str, host: str, port: int) -> None:
    assert Address.parse("rendezvous", text) == Address(host, port)


@pytest.mark.parametrize("text", ["hub", "hub:", ":1", "hub:0", "hub:65536", "hub:x", "::1:29500", "", 29500])
def test_what_is_no_address(text: Any) -> None:
    with pytest.raises(ConfigurationError, match=r"rendezvous must be host:port, such as hub\.example\.org:29500"):
        Address.parse("rendezvous", text)


def test_a_port_that_another_program_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendezvous, "_ANSWER_S", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigurationError, match=rf"port {address.port} of .* is taken by another program"):
            host_store(address)
        with pytest.raises(ConfigurationError, match=rf"the program that listens at {address} does not answer as the"):
            open_store(address, LimitedWait(5.0))


def listening(port: int) -> set[str]:
    """Addresses at which this machine listens on a port."""
    found = [one.laddr for one in psutil.net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    return {place.ip for place in found if place and place.port == port}


def test_a_private_store_listens_at_its_address_alone_and_serves_later_fits_of_the_process() -> None:
    address = Address("127.0.0.2", free_port())
    first, hosts = open_store(address, LimitedWait(60.0), is_private=True)
    second, hosts_too = open_store(address, LimitedWait(60.0), is_private=True)
    assert (hosts, hosts_too) == (True, True) and listening(address.port) == {"127.0.0.2"}
    first.set("x", "y")
    assert second.get("x") == b"y"


def test_a_private_store_does_not_take_the_port_of_another_program() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        address = Address("127.0.0.1", other.getsockname()[1])
        with pytest.raises(ConfigurationError, match=rf"port {address.port} of .* is taken by another program"):
            host_store(address, is_private=True)


def test_nobody_opens_the_meeting() -> None:
    address = Address("127.0.0.1", free_port())
    with pytest.raises(
        PeerTimeoutError, match=rf"no process has opened the meeting at {address} \(this machine alone\)"
    ):
        connect_store(address, LimitedWait(0.3))


def test_a_name_that_cannot_be_looked_up() -> None:
    with pytest.raises(ConfigurationError, match=r"'hub\.invalid' cannot be looked up"):
        open_store(Address("hub.invalid", 29500), LimitedWait(0.0))


def test_the_process_that_has_the_address_hosts_the_store_and_the_first_of_several() -> None:
    address = Address("localhost", free_port())
    wait = LimitedWait(60.0)
    store, hosts = open_store(address, wait)
    script = (
        "import sys; from lightning_parablock.meeting.rendezvous import *; from lightning_parablock.system."
        f"limited_wait import LimitedWait; s, h = open_store(Address('localhost', {address.port}), LimitedWait(60.0));"
        "s.set('x', 'y'); print(h)"
    )
    other = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT)
    assert (hosts, other.stdout) == (True, "False\n"), other.stderr
    assert store.get("x") == b"y"


def test_the_process_that_hosts_the_store_can_be_started_again() -> None:
    address, met = Address("127.0.0.1", free_port()), list[Meeting]()
    store = host_store(address)
    waiting = replace(rank_of(NO_NUMBER, "b", 2), pid=2)
    thread = threading.Thread(target=lambda: met.append(joining._meet(address, waiting, LimitedWait(60.0))[1]))
    thread.start()
    table = PrefixStore("meeting", PrefixStore(joining._attempt(), connect_store(address, LimitedWait(60.0))))
    while not table.check(["site b"]):
        time.sleep(0.01)
    del store, table  # the server ends with the last of them
    own = joining._meet(address, replace(rank_of(NO_NUMBER, "a", 2), pid=1), LimitedWait(60.0))[1]
    thread.join(120.0)
    assert (own.rank, own.site_names) == (0, ("a", "b"))
    assert met[0].run_id == own.run_id


# --- without a launcher -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("variables", "options", "why"),
    [
        ({}, {"rendezvous": "hub:1"}, "needs site: .* add --site NAME"),
        ({"WORLD_SIZE": "3", "LOCAL_WORLD_SIZE": "1"}, {}, "a launcher has started 3 processes"),
        ({"MASTER_ADDR": "other"}, {}, "rendezvous='hub:29500', but MASTER_ADDR=other: unset MASTER_ADDR"),
        ({"MASTER_PORT": "1"}, {}, "rendezvous='hub:29500', but MASTER_PORT=1: unset MASTER_PORT"),
        ({}, {"cluster_environment": LightningEnvironment()}, "rendezvous and cluster_environment both say"),
    ],
)
def test_what_contradicts_a_rendezvous(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, Any], why: str
) -> None:
    for name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    options = options if "rendezvous" in options else {"site": "a", "rendezvous": "hub:29500", **options}
    with pytest.raises(ConfigurationError, match=why):
        ParaBlockStrategy(**options)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"devices": 2, "num_nodes": 3}, "each site is one process: trainer.devices must be 1, got 2"),
        ({"devices": 1}, "trainer.num_nodes is 1: set it to the number of sites"),
    ],
)
def test_a_rendezvous_needs_one_device_and_several_nodes(options: dict[str, Any], why: str) -> None:
    with pytest.raises(ConfigurationError, match=why):
        Trainer(strategy=ParaBlockStrategy(site="a", rendezvous="hub:29500"), accelerator="cpu", **options)


TORCHRUN = {"TORCHELASTIC_RUN_ID": "x", "RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
SLURM = {"SLURM_NTASKS": "4", "SLURM_NNODES": "2", "SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_JOB_NAME": "fit"}
MPI = {f"OMPI_COMM_WORLD_{name}": value for name, value in zip(_MPI_NAMES, "1212", strict=True)}


@pytest.mark.parametrize(
    ("variables", "options", "why"),
    [
        (
            TORCHRUN,
            {"num_nodes": 2},
            "2 processes on each of 1 machines, .* devices=1 and num_nodes=2; use devices=2 and",
        ),
        (TORCHRUN, {"devices": 3}, "devices=3 and num_nodes=1; use devices=2 and num_nodes=1"),
        (SLURM, {}, "SLURM started 4 tasks; .* --ntasks-per-node"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "2"}, {}, "2 processes on each of 2 machines, .* devices=2 and num_nodes=2"),
        (SLURM | {"SLURM_NTASKS_PER_NODE": "1"}, {"num_nodes": 2}, "use devices=1 and num_nodes=4"),
        (MPI, {}, "started 2 processes on each of 1 machines"),
        (TORCHRUN | {"LOCAL_WORLD_SIZE": "3", "WORLD_SIZE": "5"}, {}, "5 processes in all and 3 .* the same number"),
        ({"RANK": "1", "WORLD_SIZE": "3"}, {}, "every process would train alone"),
        ({"LOCAL_RANK": "1"}, {}, "process 1 of its machine, .* devices=1; set devices"),
        (
            {},
            {"num_nodes": 2},
            "MASTER_ADDR, MASTER_PORT, NODE_RANK are not set.* one machine use devices=2 and num_nodes=1",
        ),
        ({"MASTER_ADDR": "h", "MASTER_PORT": "1"}, {"num_nodes": 2}, "NODE_RANK is not set"),
        ({}, {"num_nodes": 2, "start_method": "fork"}, "MASTER_ADDR, MASTER_PORT, NODE_RANK are not set"),
    ],
)
def test_devices_and_nodes_that_are_not_the_launchers(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], options: dict[str, Any], why: str
) -> None:
    for name in [name for name in os.environ if name.split("_")[0] in ("SLURM", "OMPI", "PMI", "MASTER", "LOCAL")]:
        monkeypatch.delenv(name)
    for name in ("RANK", "WORLD_SIZE", "NODE_RANK", "GROUP_RANK", "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "environ", {**os.environ, **variables})
    options = {"accelerator": "cpu", "devices": 1, "logger": False, "enable_checkpointing": False, **options}
    with pytest.raises(ConfigurationError, match=why):
        strategy = ParaBlockStrategy(blocks=1, start_method=options.pop("start_method", "popen"))
        Trainer(strategy=strategy, max_steps=1, **options).fit(Toy(), ToyData())


def test_a_name_for_several_processes_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with pytest.raises(ConfigurationError, match="devices=2 would start 2 processes under the name 'a'"):
        Trainer(strategy=ParaBlockStrategy(site="a"), accelerator="cpu", devices=2)


def test_a_site_whose_run_never_began_leaves_no_folder(tmp_path: Path) -> None:
    run = Run()
    run.site = "a"
    folder = run.open_folder(None, str(tmp_path))
    assert folder.name == "a"
    run.failed(ConfigurationError("no such data"))
    assert not list(tmp_path.iterdir())
