"""How ranks meet: names, numbers, and the refusal of one that does not belong there. Stores are real, ranks threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.cli_flags import expand_argv
from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.transport.limited_wait import LimitedWait
from lightning_parablock.transport.meeting import Introduction, Meeting, check_site_name, in_order, meet
from lightning_parablock.transport.membership import Membership
from lightning_parablock.transport.rendezvous import Address, connect_store, host_store
from tests.support.launch import free_port


def rank_of(rank: int, site: str | None = None, n_ranks: int = 3) -> Introduction:
    return Introduction(rank, n_ranks, site, f"host{rank}", 100 + rank)


def meet_in_threads(ranks: list[Introduction], limit_s: float = 60.0) -> tuple[list[Meeting | Exception], list[str]]:
    """What each of the ranks gets from a meeting at one real store, and what they said meanwhile."""
    address = Address("127.0.0.1", free_port())
    said: list[str] = []
    results: dict[int, Meeting | Exception] = {}
    hosted = host_store(address, LimitedWait(limit_s))

    def come(index: int) -> None:
        wait = LimitedWait(limit_s, said.append)
        try:
            results[index] = meet(connect_store(address, wait), ranks[index], wait, str(address))
        except Exception as error:
            results[index] = error

    threads = [threading.Thread(target=come, args=(index,)) for index in range(len(ranks))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120.0)
    del hosted
    return [results[index] for index in range(len(ranks))], said


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
    results, _ = meet_in_threads([rank_of(0, "c"), rank_of(1, "a"), rank_of(2, "b")])
    assert all(isinstance(one, Meeting) and one.site_names == ("a", "b", "c") for one in results), results
    assert [one.rank for one in results if isinstance(one, Meeting)] == [2, 0, 1]
    assert len({one.run_id for one in results if isinstance(one, Meeting)}) == 1


@pytest.mark.parametrize(
    ("stray", "why"),
    [
        (
            replace(rank_of(1, "b"), pid=9, host="elsewhere"),
            r"site b \(pid 9 on elsewhere\) cannot join .*name is taken",
        ),
        (replace(rank_of(1, "x"), pid=9, host="elsewhere"), r"number is taken by pid 101 on host1"),
        (replace(rank_of(1, "x"), n_ranks=4), r"belongs to a run of 3 processes, and this is a run of 4 processes"),
        (replace(rank_of(1, "x"), job="77"), r"this is a run of 3 processes \(77\)"),
    ],
)
def test_one_that_does_not_belong_there_is_refused_alone(stray: Introduction, why: str) -> None:
    address = Address("127.0.0.1", free_port())
    said: list[str] = []
    store = host_store(address, LimitedWait(60.0))
    come: Callable[[Introduction], Meeting] = lambda one: meet(  # noqa: E731
        connect_store(address, LimitedWait(60.0)), one, LimitedWait(0.3, said.append), str(address)
    )
    for early in (rank_of(0, "a"), rank_of(1, "b")):
        with pytest.raises(PeerTimeoutError, match=rf"ranks? .* of 3 .*here: .*did not come to {address}"):
            come(early)
    with pytest.raises(ConfigurationError, match=why):
        come(stray)
    with pytest.raises(PeerTimeoutError, match=r"rank 2 of 3 .*; refused: .*cannot join"):  # those who wait see it
        come(rank_of(0, "a"))
    assert come(rank_of(2, "x")).site_names == ("a", "b", "x")  # neither name nor number is lost to the refused one
    del store
