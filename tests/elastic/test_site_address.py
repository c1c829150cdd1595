"""Where a site of an elastic run listens: at the address that the others reach, and in the range of ``ports``."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator

import pytest

from lightning_parablock.elastic.run_site import RunSite
from lightning_parablock.elastic.stores import host_store, join_store
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting import addresses, devices
from lightning_parablock.settings import Settings
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.strategy import elastic_run

Opens = Callable[..., RunSite]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Iterator[Opens]:
    """Opens sites, which enter no run; the others reach this machine at an address that is not that of its name."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(devices, "_listeners", ())
    monkeypatch.setattr(elastic_run, "own_address", lambda hub, one_host, role: "127.0.0.2")
    made: list[RunSite] = []

    def open_one(**options: object) -> RunSite:
        options = {"lighthouse": "127.0.0.1:29510", "min_clients": 1, **options}
        settings = Settings(**options)  # pyright: ignore[reportArgumentType]
        site = elastic_run.open_site(settings, "a", None)
        assert isinstance(site, RunSite)
        made.append(site)
        return site

    yield open_one
    for site in made:
        site.desk.close()


def _addresses(site: RunSite) -> set[str]:
    (listener,) = devices._listeners
    seat = site.seat
    return {listener.address, *(at.rpartition(":")[0] for at in (seat.address, seat.store_address))}


def test_the_exchange_and_the_desk_listen_where_the_others_reach_this_site(opened: Opens) -> None:
    assert _addresses(opened()) == {"127.0.0.2"}


def test_the_named_interface_takes_precedence(opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    assert _addresses(opened()) == {"127.0.0.1"}


def test_an_interface_that_is_not_there_is_named(opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "nope7")
    with pytest.raises(ConfigurationError, match="GLOO_SOCKET_IFNAME names the network interface 'nope7'"):
        opened()


def test_a_lighthouse_that_cannot_be_resolved_is_called_one(opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(elastic_run, "own_address", addresses.own_address)
    with pytest.raises(ConfigurationError, match=r"the lighthouse host 'nowhere\.invalid' cannot be resolved"):
        opened(lighthouse="nowhere.invalid:29510")


def test_the_exchange_the_desk_and_the_store_listen_in_the_range(opened: Opens) -> None:
    first, last = devices._kernel_range()
    ports = PortRange(first, first + (last - first) // 2)
    site = opened(ports=str(ports))
    (listener,) = devices._listeners
    used = [listener.port, *(int(at.rpartition(":")[2]) for at in (site.seat.address, site.seat.store_address))]
    assert len(set(used)) == 3 and all(port in ports for port in used)
    join_store(site.seat.store_address, 10.0).set("key", "value")
    assert site.store.get("key") == b"value"


def test_a_store_without_a_free_port_names_the_range() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=f"ports='{port}': .* Address already in use"):
            host_store("127.0.0.1", PortRange(port, port))


def test_the_limit_of_open_files_is_raised(opened: Opens, monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process can connect to the ports of a site, and a connection is an open file."""
    calls: list[int] = []
    monkeypatch.setattr(elastic_run, "raise_limit", lambda: calls.append(1))
    opened()
    assert calls == [1]
