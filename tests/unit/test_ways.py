"""The ranks tell each other where they listen, and try the way before gloo does."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from lightning_parablock.errors import ConfigurationError, PeerTimeoutError, ProtocolError
from lightning_parablock.meeting import ways
from lightning_parablock.meeting.devices import Listener
from lightning_parablock.meeting.introductions import Introduction, Meeting
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.meeting.ways import Ways
from lightning_parablock.system.limited_wait import LimitedWait

RANKS = tuple(Introduction(rank, 2, "ab"[rank], f"h{rank}", 10 + rank) for rank in range(2))


def opened(
    addresses: list[tuple[str, int] | ConfigurationError],
    monkeypatch: pytest.MonkeyPatch,
    links: Sequence[PrivateLinks | None] = (None, None),
) -> list[str]:
    """The error of each rank, where rank r listens at ``addresses[r]``, on a thread of its own."""
    store = dist.HashStore()

    def own_address(master: str, *, one_host: bool, reached_as: str | None) -> str:
        found = addresses[int(master[-1])]
        if isinstance(found, ConfigurationError):
            raise found
        return master[-1]

    def listeners(own: str, ports: object) -> list[Listener]:
        found = addresses[int(own[-1])]
        assert not isinstance(found, ConfigurationError)
        return [Listener(None, *found)]

    monkeypatch.setattr(ways, "own_address", own_address)
    monkeypatch.setattr(ways, "open_listeners", listeners)
    monkeypatch.setattr(ways, "resolved", lambda master: None)

    def run(rank: int) -> str:
        try:
            ways_of = Ways(f"master{rank}", one_host=False, ports=None, links=links[rank])
            ways_of.open(store, Meeting(RANKS, rank, "x"), LimitedWait(20.0))
        except ConfigurationError as error:
            return str(error)
        return ""

    with ThreadPoolExecutor(2) as pool:
        return list(pool.map(run, range(2)))


def closed_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def test_only_the_rank_with_the_higher_address_needs_a_way(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert opened([server.getsockname()[:2], ("127.0.0.2", closed_port())], monkeypatch) == ["", ""]


def test_a_way_that_is_closed_is_the_same_error_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    one, other = opened([("127.0.0.1", port), ("127.0.0.2", 1)], monkeypatch)
    assert one == other
    assert one.startswith(f"site b (pid 11 on h1) cannot connect to site a (pid 10 on h0) at 127.0.0.1:{port}: ")
    assert "GLOO_SOCKET_IFNAME" in one


def test_a_rank_that_cannot_listen_ends_all_with_its_words(monkeypatch: pytest.MonkeyPatch) -> None:
    errors = opened([("127.0.0.1", 1), ConfigurationError("no port on h1")], monkeypatch)
    assert errors == ["no port on h1"] * 2


def test_a_rank_that_announces_nothing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(PeerTimeoutError, match=r"site b \(pid 11 on h1\) joined the run but announced no rendezvous"):
        Ways("127.0.0.1", one_host=False, ports=None).open(dist.HashStore(), Meeting(RANKS, 0, "x"), LimitedWait(0.2))


def of_federation(site: str, **inner: str) -> PrivateLinks:
    return PrivateLinks("version 1 of federation clinic", site, inner, {}, None, ("clinic.conf",), "")


def test_ranks_of_a_federation_listen_at_their_inner_addresses_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [of_federation(site, a="127.0.0.10", b="127.0.0.11") for site in "ab"]
    with socket.create_server(("127.0.0.10", 0)) as server:
        addresses = [server.getsockname()[:2], ("127.0.0.11", closed_port())]
        assert opened(addresses, monkeypatch, links) == ["", ""]
        addresses[1] = ("127.0.0.21", closed_port())
        for error in opened(addresses, monkeypatch, links):
            assert error.startswith(
                "the exchanges of site b would listen at 127.0.0.21, which is not its inner address"
            )


@pytest.mark.parametrize("said", [[], [["127.0.0.11", 1], ["127.0.0.11", 2]]], ids=["none", "two"])
def test_a_site_of_a_federation_has_one_listener(said: list[list[object]]) -> None:
    links = of_federation("a", a="127.0.0.10", b="127.0.0.11")
    with pytest.raises(ProtocolError, match=r"the addresses of site b .* malformed"):
        ways._peers(Meeting(RANKS, 0, "x"), [[["127.0.0.10", 1]], said], links)


def test_an_address_that_the_roster_does_not_give_is_refused_on_every_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    links = [of_federation("a", a="127.0.0.10", b="127.0.0.31"), of_federation("b", a="127.0.0.10", b="127.0.0.11")]
    with socket.create_server(("127.0.0.10", 0)) as server:
        errors = opened([server.getsockname()[:2], ("127.0.0.11", closed_port())], monkeypatch, links)
    assert errors[0] == errors[1]
    assert errors[0].startswith("a listener of site 'b' at 127.0.0.11 is refused: version 1 of federation clinic gives")
