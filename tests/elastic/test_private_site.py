"""A site of a federation listens at its inner address alone, and speaks with the addresses of the roster alone."""

from __future__ import annotations

import contextlib
import http.client
import json
import logging
from collections.abc import Callable, Iterator
from dataclasses import replace

import psutil
import pytest

from lightning_parablock.elastic.arbiter import Candidate, new_incarnation
from lightning_parablock.elastic.known_sites import KnownSites
from lightning_parablock.elastic.lighthouse import Lighthouse
from lightning_parablock.elastic.lighthouse_server import LighthouseServer
from lightning_parablock.elastic.run_site import RunSite
from lightning_parablock.errors import ConfigurationError, ReplacedError
from lightning_parablock.meeting import devices, private_links
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.settings import Settings
from lightning_parablock.strategy import elastic_run
from tests.elastic.conftest import SILENCE_S

LINKS = PrivateLinks(
    federation="version 1 of federation clinic",
    site="a",
    inner={"a": "127.0.0.2", "b": "127.0.0.3"},
    outer={"a": "127.1.0.2", "b": "127.1.0.3"},
    hub="127.1.0.1",
    files=("clinic.conf",),
    alias="",
)


@pytest.fixture
def interfaces(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """The interfaces of this machine, by address."""
    known = {"127.0.0.2": "lo", "127.1.0.2": "lo"}
    monkeypatch.setattr(private_links, "interfaces_here", lambda: known)
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    monkeypatch.setattr(devices, "_listeners", ())
    return known


@pytest.fixture
def site(interfaces: dict[str, str]) -> Iterator[RunSite]:
    opened = elastic_run.open_site(Settings(lighthouse="127.1.0.1:29510", min_clients=1), "a", None, LINKS)
    assert isinstance(opened, RunSite)
    yield opened
    opened.desk.close()


def call(site: RunSite, name: str, said: object, *, source: str, claimed: str) -> tuple[int, dict[str, str]]:
    """Status and answer of a call from an address, in the name of a site."""
    host, _, port = site.seat.address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20, source_address=(source, 0))
    text = json.dumps(said)
    headers = {"Parablock-Site": claimed, "Parablock-Said": str(len(text)), "Parablock-Wait-S": "5"}
    connection.request("POST", f"/{name}", text, headers)
    response = connection.getresponse()
    answer = json.loads(response.read()[: int(response.headers["Parablock-Said"])])
    connection.close()
    return response.status, answer


def test_everything_of_a_site_listens_at_its_inner_address(site: RunSite) -> None:
    (listener,) = devices._listeners
    ports = {listener.port, site.store.port, int(site.seat.address.rpartition(":")[2])}
    assert len(ports) == 3
    mine = [one.laddr for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN]
    assert {place.ip for place in mine if place and place.port in ports} == {"127.0.0.2"}
    assert site.seat.store_address == f"127.0.0.2:{site.store.port}"


def test_a_missing_interface_and_another_one_are_named_before_anything_is_opened(
    interfaces: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = Settings(lighthouse="127.1.0.1:29510", min_clients=1)
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "eth0")
    with pytest.raises(ConfigurationError, match="GLOO_SOCKET_IFNAME=eth0, but with federation the run uses lo alone"):
        elastic_run.open_site(settings, "a", None, LINKS)
    del interfaces["127.0.0.2"]
    with pytest.raises(ConfigurationError, match=r"the inner address 127\.0\.0\.2 of site a .* wg-quick up clinic"):
        elastic_run.open_site(settings, "a", None, LINKS)
    assert devices._listeners == ()


def test_a_call_counts_only_from_the_address_of_its_site(site: RunSite) -> None:
    status, answer = call(site, "log", {}, source="127.0.0.3", claimed="b")
    assert status == 200 and answer["run"] == ""
    for source, claimed in (("127.0.0.1", "b"), ("127.0.0.2", "b"), ("127.0.0.3", "a"), ("127.0.0.3", "c")):
        status, answer = call(site, "log", {}, source=source, claimed=claimed)
        assert (status, answer["kind"]) == (400, "stranger"), answer
        assert answer["text"].startswith(f"a call of site '{claimed}' at {source} is refused: ")


def test_addresses_that_a_member_names_are_held_to_the_roster(site: RunSite) -> None:
    said = {"desks": {"b": "203.0.113.5:40000"}}
    status, answer = call(site, "reach", said, source="127.0.0.3", claimed="b")
    assert (status, answer["kind"]) == (400, "ProtocolError")
    assert "the desk of site 'b' at 203.0.113.5 is refused" in answer["text"]
    said = {"generation": 0, "store": "203.0.113.5:40000"}
    status, answer = call(site, "connect", said, source="127.0.0.3", claimed="b")
    assert (status, answer["kind"]) == (400, "ProtocolError")
    assert "the store of site 'b' at 203.0.113.5 is refused" in answer["text"]


@pytest.fixture
def entered(server: LighthouseServer) -> Iterator[Callable[[Candidate, KnownSites | None], Lighthouse]]:
    """Enters processes at a lighthouse, where they stay until the test ends."""
    made: list[Lighthouse] = []

    def enter(one: Candidate, known: KnownSites | None) -> Lighthouse:
        made.append(Lighthouse(f"127.0.0.1:{server.port}", SILENCE_S, known))
        with contextlib.suppress(ReplacedError):  # of two processes of one site, without a roster the newer one counts
            made[-1].ask(one, 60.0)
        return made[-1]

    yield enter
    for each in made:
        each.close()


def test_entries_of_the_lighthouse_with_other_addresses_are_left_out_and_reported(
    entered: Callable[[Candidate, KnownSites | None], Lighthouse], caplog: pytest.LogCaptureFixture
) -> None:
    mine = Candidate("a", new_incarnation(), "127.0.0.2:4000", "127.0.0.2:4001")
    peer = Candidate("b", new_incarnation(), "127.0.0.3:4000", "127.0.0.3:4001")
    elsewhere = replace(peer, incarnation=new_incarnation(), desk="127.0.0.9:4000")
    half = replace(peer, incarnation=new_incarnation(), store="127.0.0.8:4001")
    stranger = Candidate("c", new_incarnation(), "127.0.0.4:4000", "127.0.0.4:4001")
    newer_self = replace(mine, incarnation=new_incarnation(), desk="127.0.0.9:4002")  # would end this site as replaced
    for one in (elsewhere, half, stranger, newer_self, peer):
        entered(one, None)
    with caplog.at_level(logging.ERROR):
        arbiter = entered(mine, KnownSites(LINKS))
        wanted = {
            "the desk of site 'b' at 127.0.0.9",
            "the store of site 'b' at 127.0.0.8",
            "the desk of site 'c' at 127.0.0.4",
            "the desk of site 'a' at 127.0.0.9",
        }
        for _ in range(200):  # the lighthouse may give short lists until it has heard all of them
            found = {one.desk for one in arbiter.ask(mine, 60.0)}
            assert found <= {"127.0.0.2:4000", "127.0.0.3:4000"}
            reported = [one.message for one in caplog.records if "at the lighthouse is left out" in one.message]
            said = {words for words in wanted if sum(words in line for line in reported) == 1}
            if said == wanted and len(found) == 2:
                break
    assert (said, len(found), len(reported)) == (wanted, 2, 4)
