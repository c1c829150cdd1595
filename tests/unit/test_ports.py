"""The option ``ports``, and the one gloo listener that all groups of a process share."""

from __future__ import annotations

from collections.abc import Generator

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import LightningEnvironment

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting import devices
from lightning_parablock.meeting.devices import Listener, on_listeners, open_group, open_listeners
from lightning_parablock.settings.ports import PortRange, read_ports
from lightning_parablock.strategy import ranks

LOOPBACK = "127.0.0.1"


@pytest.fixture
def no_listeners(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(devices, "_listeners", ())


@pytest.fixture
def attainable() -> str:
    """A range that the kernel of this machine gives to gloo often."""
    first, last = devices._kernel_range()
    return f"{first}-{first + (last - first) // 4}"


@pytest.fixture
def no_groups() -> Generator[None]:
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, None),
        ("40000-40099", PortRange(40000, 40099)),
        (" 40000 - 40099 ", PortRange(40000, 40099)),
        (40001, PortRange(40001, 40001)),
    ],
)
def test_ports_are_a_range_or_one_port(text: str | int | None, expected: PortRange | None) -> None:
    assert read_ports(text) == expected


@pytest.mark.parametrize("text", ["", "40099-40000", "0-10", "1-65536", "40000,40001", "-5", "any", "1-2-3"])
def test_what_is_not_a_range_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigurationError, match="such as '40000-40099'"):
        read_ports(text)


def test_both_ends_belong_to_a_range() -> None:
    ports = PortRange(5, 7)
    assert [port in ports for port in range(4, 9)] == [False, True, True, True, False]
    assert (str(ports), str(PortRange(5, 5))) == ("5-7", "5")


def test_sites_may_have_different_ports() -> None:
    settings = ParaBlockStrategy(ports="40000-40099").settings
    assert settings.ports == PortRange(40000, 40099)
    assert settings.fingerprint() == ParaBlockStrategy().settings.fingerprint()


@pytest.mark.usefixtures("no_listeners")
def test_the_listener_is_in_the_range(attainable: str) -> None:
    (listener,) = open_listeners(LOOPBACK, read_ports(attainable))
    assert listener.address == LOOPBACK
    assert listener.port in PortRange(*map(int, attainable.split("-")))
    assert (LOOPBACK, listener.port) in devices._listening().values()


@pytest.mark.usefixtures("no_listeners", "no_groups")
def test_all_groups_share_one_listener() -> None:
    before = len(devices._listening())
    open_listeners(LOOPBACK, None)
    with on_listeners():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    groups = [open_group("gloo", 30.0) for _ in range(3)]
    assert len(devices._listening()) == before + 1
    value = torch.ones(1)
    for group in (None, *groups):
        dist.all_reduce(value, group=group)
    assert dist.get_backend() == "gloo"
    assert dist.ProcessGroupGloo is torch.distributed.distributed_c10d.ProcessGroupGloo


@pytest.mark.usefixtures("no_listeners", "no_groups")
def test_a_group_keeps_its_time_limit() -> None:
    open_listeners(LOOPBACK, None)
    with on_listeners():
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    backend = open_group("gloo", 12.0)._get_backend(torch.device("cpu"))
    assert backend.options._timeout.total_seconds() == 12.0


@pytest.mark.usefixtures("no_listeners")
def test_ports_that_the_kernel_never_gives_are_refused_with_a_range_that_works() -> None:
    with pytest.raises(ConfigurationError, match=r"ports='1000-1099': .*ip_local_port_range.*such as '\d+-\d+'"):
        open_listeners(LOOPBACK, PortRange(1000, 1099))


def test_such_ports_are_refused_before_the_sites_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "join_run", lambda *_, **__: pytest.fail("the sites have met"))
    strategy = ParaBlockStrategy(ports="1000-1099", cluster_environment=LightningEnvironment())
    strategy.parallel_devices = [torch.device("cpu")] * 2
    with pytest.raises(ConfigurationError, match="ports='1000-1099'"):
        strategy._join(strategy.settings)


@pytest.mark.usefixtures("no_listeners")
def test_the_search_for_a_port_has_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "refuse_unattainable", lambda ports: None)
    with pytest.raises(ConfigurationError, match=r"gave none of them within 0\.1 s"):
        open_listeners(LOOPBACK, PortRange(1000, 1099), limit_s=0.1)


@pytest.mark.usefixtures("no_listeners")
def test_the_named_interface_takes_precedence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    (listener,) = open_listeners("10.255.255.254", None)
    assert isinstance(listener, Listener)
    assert listener.address == LOOPBACK


@pytest.mark.usefixtures("no_listeners")
def test_an_interface_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope7")
    with pytest.raises(ConfigurationError, match=r"GLOO_SOCKET_IFNAME names the network interface 'nope7'.* has .*lo"):
        open_listeners(LOOPBACK, None)


@pytest.mark.usefixtures("no_listeners")
def test_an_address_of_another_machine_leads_to_the_variable() -> None:
    with pytest.raises(ConfigurationError, match="export GLOO_SOCKET_IFNAME=eth0"):
        open_listeners("192.0.2.1", None)
