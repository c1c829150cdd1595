"""Ranks that have met open their connections: what the others are told where one of them cannot, or does not begin."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

import pytest
from torch.distributed.distributed_c10d import Store

from lightning_parablock.errors import ConfigurationError, PeerLostError, PeerTimeoutError
from lightning_parablock.meeting import group_opening
from lightning_parablock.meeting.group_opening import open_together
from lightning_parablock.meeting.introductions import Introduction, Meeting
from lightning_parablock.meeting.rendezvous import Address, connect_store, host_store
from lightning_parablock.system.limited_wait import LimitedWait
from tests.support.launch import free_port

RANKS = tuple(Introduction(rank, 2, "ab"[rank], f"h{rank}", 10 + rank) for rank in range(2))


@pytest.fixture
def stores() -> list[Store]:
    """One connection for each of two ranks; the first one hosts the store."""
    address = Address("127.0.0.1", free_port())
    return [host_store(address), connect_store(address, LimitedWait(60.0))]


@pytest.fixture
def stuck() -> Generator[Callable[[], object]]:
    """A connection that does not open as long as the test lasts."""
    is_over = threading.Event()
    yield is_over.wait
    is_over.set()
    for thread in threading.enumerate():
        if thread.name == "parablock-opening":
            thread.join()


def fail() -> None:
    raise RuntimeError("Gloo connectFullMesh failed\nat a line of C++")


def test_one_that_cannot_connect_is_named_everywhere(stores: list[Store], stuck: Callable[[], object]) -> None:
    failures: list[Exception] = []

    def other() -> None:
        try:
            open_together(fail, Meeting(RANKS, 1, "run"), stores[1], 60.0)
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    told = (
        r"site b \(pid 11 on h1\) could not connect to the other ranks \(Gloo connectFullMesh failed\).*SOCKET_IFNAME"
    )
    with pytest.raises(PeerLostError, match=told):
        open_together(stuck, Meeting(RANKS, 0, "run"), stores[0], 60.0)
    thread.join()
    assert isinstance(failures[0], PeerLostError)
    assert "site b (pid 11 on h1)" in str(failures[0])


def test_one_that_does_not_begin_is_named_at_the_limit(
    stores: list[Store], stuck: Callable[[], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group_opening, "_AT_LEAST_S", 0.0)
    with pytest.raises(PeerTimeoutError, match=r"site b \(pid 11 on h1\) is not connected within 0 s"):
        open_together(stuck, Meeting(RANKS, 0, "run"), stores[0], 0.0)


def test_an_error_of_this_package_stays_as_it_is(stores: list[Store]) -> None:
    def refuse() -> None:
        raise ConfigurationError("no such port")

    with pytest.raises(ConfigurationError, match=r"^no such port$"):
        open_together(refuse, Meeting(RANKS, 0, "run"), stores[0], 60.0)
