"""Which address a rank gives to the others."""

from __future__ import annotations

import socket
from types import SimpleNamespace
from typing import Any

import pytest

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.meeting import addresses
from lightning_parablock.meeting.addresses import is_loopback, own_address


class Machine:
    """A machine's name service, routes and addresses."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.names: dict[str, str] = {}
        self.sources: dict[str, str] = {"127.0.1.1": "127.0.0.1", "127.0.0.1": "127.0.0.1"}
        self.interfaces: list[str] = ["127.0.0.1"]
        monkeypatch.setattr(socket, "getaddrinfo", self._look_up)
        monkeypatch.setattr(addresses, "_source", lambda family, target: self.sources.get(target[0]))
        monkeypatch.setattr(addresses.psutil, "net_if_addrs", self._interfaces)

    def _look_up(self, name: str, port: int, **_: Any) -> list[Any]:
        address = self.names.get(name, name)
        if not address[0].isdigit():
            raise socket.gaierror(-2, "Name or service not known")
        return [(socket.AF_INET, socket.SOCK_DGRAM, 17, "", (address, port))]

    def _interfaces(self) -> dict[str, list[Any]]:
        return {f"if{i}": [SimpleNamespace(family=socket.AF_INET, address=a)] for i, a in enumerate(self.interfaces)}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return Machine(monkeypatch)


def test_ranks_on_one_machine_use_loopback_whatever_its_name_resolves_to(machine: Machine) -> None:
    machine.names["me"] = "10.0.0.5"
    assert own_address("me", one_host=True) == "127.0.0.1"


def test_the_address_on_the_route_to_the_rendezvous(machine: Machine) -> None:
    machine.names["hub"], machine.sources["10.0.0.5"] = "10.0.0.5", "10.0.0.7"
    assert own_address("hub", one_host=False) == "10.0.0.7"


@pytest.mark.parametrize("master", ["localhost", "127.0.0.1"])
def test_a_loopback_rendezvous_keeps_all_ranks_on_this_machine(machine: Machine, master: str) -> None:
    machine.names["localhost"] = "127.0.0.1"
    machine.interfaces.append("10.0.0.5")
    assert own_address(master, one_host=False) == "127.0.0.1"


def test_debians_own_name_gives_the_address_of_the_default_route(machine: Machine) -> None:
    machine.names["me"], machine.sources["192.0.2.1"] = "127.0.1.1", "10.0.0.5"
    assert own_address("me", one_host=False) == "10.0.0.5"


def test_debians_own_name_gives_the_only_address_where_there_is_no_default_route(machine: Machine) -> None:
    machine.names["me"] = "127.0.1.1"
    machine.interfaces.append("10.0.0.5")
    assert own_address("me", one_host=False) == "10.0.0.5"


def test_the_address_by_which_others_reach_the_rendezvous_comes_first(machine: Machine) -> None:
    machine.names["me"], machine.sources["192.0.2.1"] = "127.0.1.1", "10.0.0.5"
    machine.interfaces += ["10.0.0.5", "172.16.0.5"]
    assert own_address("me", one_host=False, reached_as="172.16.0.5") == "172.16.0.5"
    assert own_address("me", one_host=False, reached_as="203.0.113.9") == "10.0.0.5"  # the router's, not this machine's


def test_several_addresses_and_no_default_route_ask_for_the_interface(machine: Machine) -> None:
    machine.names["me"] = "127.0.1.1"
    machine.interfaces += ["10.0.0.5", "172.16.0.5"]
    with pytest.raises(ConfigurationError, match=r"10\.0\.0\.5, 172\.16\.0\.5.*export GLOO_SOCKET_IFNAME="):
        own_address("me", one_host=False)


def test_a_machine_off_every_network_uses_loopback(machine: Machine) -> None:
    machine.names["me"] = "127.0.1.1"
    assert own_address("me", one_host=False) == "127.0.0.1"


def test_a_name_that_does_not_resolve_is_named(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match="'nowhere' cannot be resolved"):
        own_address("nowhere", one_host=False)


def test_no_route_is_named(machine: Machine) -> None:
    with pytest.raises(ConfigurationError, match=r"no route leads .*'10\.9\.9\.9'"):
        own_address("10.9.9.9", one_host=False)


def test_what_is_a_loopback_address() -> None:
    texts = ["127.0.0.1", "127.0.1.1", "::1", "10.0.0.1", "fe80::1%eth0", "localhost"]
    assert [is_loopback(text) for text in texts] == [True, True, True, False, False, False]
