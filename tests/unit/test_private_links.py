"""The addresses of a federation: what users give and what peers say is held to the roster."""

from __future__ import annotations

import logging
import socket
from dataclasses import replace

import pytest

from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.meeting import private_links
from lightning_parablock.meeting.private_links import PrivateLinks, interfaces_here
from lightning_parablock.system.interface_alias import interface_alias

TWO_LAYERS = PrivateLinks(
    federation="version 2 of federation clinic",
    site="a",
    inner={"a": "10.91.0.1", "b": "10.91.0.2"},
    outer={"a": "10.90.0.2", "b": "10.90.0.3"},
    hub="10.90.0.1",
    files=("clinic-outer.conf", "clinic-inner.conf"),
    alias="version 2 of federation clinic, SHA-256 22",
)
MESH = replace(TWO_LAYERS, outer={}, hub=None, files=("clinic-inner.conf",))
BOTH_UP = {"10.90.0.2": "clinic-outer", "10.91.0.1": "clinic-inner", "192.168.1.2": "eth0"}


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The interfaces of this machine by their addresses; a test may change them."""
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    interfaces = dict(BOTH_UP)
    monkeypatch.setattr(private_links, "interfaces_here", lambda: interfaces)
    monkeypatch.setattr(private_links, "interface_alias", lambda _: TWO_LAYERS.alias)
    return interfaces


@pytest.mark.parametrize("address", ["10.90.0.1:29510", "10.90.0.3:29510"])
def test_a_lighthouse_in_the_outer_layer_is_taken(address: str) -> None:
    TWO_LAYERS.check_lighthouse(address)


@pytest.mark.parametrize("address", ["203.0.113.5:29510", "hub.example.org:29510", "10.91.0.2:29510", "10.90.0.9:1"])
def test_any_other_lighthouse_is_refused(address: str) -> None:
    with pytest.raises(ConfigurationError, match=r"lighthouse='.*' is outside the private network .* 10\.90\.0\.1 for"):
        TWO_LAYERS.check_lighthouse(address)


def test_without_a_hub_the_lighthouse_is_at_a_site() -> None:
    MESH.check_lighthouse("10.91.0.2:29510")
    with pytest.raises(ConfigurationError, match=r"give an address of one of the sites, 10\.91\.0\.1 \(a\), 10\.91"):
        MESH.check_lighthouse("10.90.0.1:29510")


@pytest.mark.parametrize("host", ["hub.example.org", "10.90.0.1", "192.168.1.2", "127.0.0.1", "10.91.0.3", ""])
def test_ranks_meet_inside_alone(host: str) -> None:
    TWO_LAYERS.check_meeting("10.91.0.2", "MASTER_ADDR")
    with pytest.raises(ConfigurationError, match=r"^MASTER_ADDR: the ranks are to meet at '.*', which is outside"):
        TWO_LAYERS.check_meeting(host, "MASTER_ADDR")


@pytest.mark.parametrize("named", ["", "clinic-inner"])
def test_both_interfaces_must_be_up(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    TWO_LAYERS.check_here()
    for layer, address in (("outer", "10.90.0.2"), ("inner", "10.91.0.1")):
        name = machine.pop(address)
        with pytest.raises(ConfigurationError, match=rf"has the {layer} address {address} of site a .*: wg-quick up "):
            TWO_LAYERS.check_here()
        machine[address] = name


@pytest.mark.parametrize(
    ("alias", "runs"),
    [
        ("version 1 of federation clinic, SHA-256 11", "runs with version 1 of federation clinic"),
        ("version 2 of federation clinic, SHA-256 23", "runs with another version 2 of federation clinic"),
        ("", "does not say with which version of the federation it was opened"),
    ],
)
@pytest.mark.parametrize("old", ["clinic-outer", "clinic-inner"])
@pytest.mark.usefixtures("machine")
def test_links_of_another_version_are_refused(monkeypatch: pytest.MonkeyPatch, old: str, alias: str, runs: str) -> None:
    monkeypatch.setattr(private_links, "interface_alias", lambda name: alias if name == old else TWO_LAYERS.alias)
    with pytest.raises(ConfigurationError) as refused:
        TWO_LAYERS.check_here()
    assert str(refused.value) == (
        f"the link {old} {runs}, and the federation file of site a has version 2 of federation clinic: run "
        "lightning-parablock site join with this file, unless you have, and then, as root: wg-quick down "
        "clinic-inner.conf; wg-quick down clinic-outer.conf; wg-quick up clinic-outer.conf; wg-quick up "
        "clinic-inner.conf"
    )


def test_the_alias_of_an_interface() -> None:
    assert interface_alias("lo") == ""
    with pytest.raises(OSError, match=r"No such device|no interface"):
        interface_alias("clinic-none")


@pytest.mark.parametrize("named", ["eth0", "clinic-outer", "clinic-inner,eth0"])
def test_another_interface_is_refused(machine: dict[str, str], monkeypatch: pytest.MonkeyPatch, named: str) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", named)
    with pytest.raises(ConfigurationError, match=rf"^GLOO_SOCKET_IFNAME={named}, but with federation the run uses"):
        TWO_LAYERS.check_here()


def test_a_mesh_needs_the_inner_interface_alone(machine: dict[str, str]) -> None:
    del machine["10.90.0.2"]
    MESH.check_here()


def test_listeners_at_another_address_of_the_interface_are_refused() -> None:
    TWO_LAYERS.check_listeners(["10.91.0.1"])
    with pytest.raises(ConfigurationError, match=r"would listen at 10\.91\.0\.77, which is not its inner address"):
        TWO_LAYERS.check_listeners(["10.91.0.1", "10.91.0.77"])


def test_peers_have_the_addresses_of_the_roster() -> None:
    TWO_LAYERS.check_peer_port("b", "10.91.0.2:40001", "the desk")
    for address in ("10.91.0.1:40001", "203.0.113.5:40001", "b.example.org:40001", "10.90.0.3:1", "", ":::"):
        with pytest.raises(ProtocolError, match=r"^the desk of site 'b' at .* is refused: .* the address 10\.91\.0\.2"):
            TWO_LAYERS.check_peer_port("b", address, "the desk")


def test_a_site_that_is_not_in_the_roster_is_refused() -> None:
    with pytest.raises(ProtocolError, match=r"^a call of site 'c' at 10\.91\.0\.3 is refused: version 2 of federation"):
        TWO_LAYERS.check_peer("c", "10.91.0.3", "a call")


def test_the_interfaces_of_this_machine_are_known_by_their_addresses() -> None:
    assert "127.0.0.1" in interfaces_here()


@pytest.mark.parametrize(("host", "n_warnings"), [("0.0.0.0", 1), ("127.0.0.1", 0)])
def test_a_store_that_listens_everywhere_is_reported(
    caplog: pytest.LogCaptureFixture, host: str, n_warnings: int
) -> None:
    with socket.create_server((host, 0)) as store, caplog.at_level(logging.WARNING):
        TWO_LAYERS.warn_of_open_store(store.getsockname()[1])
    assert sum("listens at every address" in one.message for one in caplog.records) == n_warnings
