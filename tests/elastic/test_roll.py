"""Who counts as alive when lists lack a process: the gone, the slow, and those that a new lighthouse does not know."""

from __future__ import annotations

import socket

import pytest

from lightning_parablock.elastic.arbiter import Candidate
from lightning_parablock.elastic.roll import Roll, nobody_listens

ALL = {name: Candidate(name, "1", f"{name}:1") for name in "abc"}


def roll() -> tuple[Roll, set[str], list[str]]:
    """A roll, the desks at which nothing listens, and the desks that were looked at."""
    gone, looked_at = set[str](), list[str]()

    def is_gone(desk: str) -> bool:
        looked_at.append(desk)
        return desk in gone

    return Roll(5.0, is_gone), gone, looked_at


def read(of: Roll, sites: str, now_s: float, quorum_id: int = 1) -> str:
    return "".join(sorted(one.site for one in of.read(quorum_id, {name: ALL[name] for name in sites}, now_s)))


def test_nobody_is_looked_at_while_all_are_there() -> None:
    mine, _, looked_at = roll()
    assert [read(mine, sites, now_s) for now_s, sites in enumerate(["a", "ab", "abc", "abc"])] == [
        "a",
        "ab",
        "abc",
        "abc",
    ]
    assert looked_at == []


def test_one_that_is_gone_is_left_out_at_once() -> None:
    mine, gone, looked_at = roll()
    assert read(mine, "abc", 0) == "abc"
    gone.add("b:1")
    assert (read(mine, "ac", 1), looked_at) == ("ac", ["b:1"])
    assert (read(mine, "ac", 2), looked_at) == ("ac", ["b:1"])
    gone.clear()
    assert read(mine, "abc", 3) == "abc"


def test_one_that_is_missing_is_left_out_after_the_silence_limit() -> None:
    mine, _, _ = roll()
    assert read(mine, "abc", 0) == "abc"
    assert [read(mine, "ac", now_s) for now_s in (1, 4.9, 5, 6)] == ["abc", "abc", "ac", "ac"]


def test_one_that_is_slow_is_never_left_out() -> None:
    mine, _, _ = roll()
    for now_s in range(100):
        assert now_s == 0 or read(mine, "ac" if now_s % 4 else "abc", now_s) == ("abc" if now_s > 3 else "ac")


@pytest.mark.parametrize("is_noticed", [True, False])
def test_a_new_lighthouse_has_the_silence_limit_to_learn_who_is_there(is_noticed: bool) -> None:
    mine, gone, _ = roll()
    assert read(mine, "abc", 0, quorum_id=7) == "abc"
    if is_noticed:  # otherwise it was started again between two calls
        mine.note_absence()
    assert [read(mine, "a", now_s, quorum_id=1) for now_s in (100, 104)] == ["abc", "abc"]
    assert read(mine, "ab", 104.5, quorum_id=2) == "abc"
    gone.add("b:1")
    assert [read(mine, "a", now_s, quorum_id=3) for now_s in (104.9, 105)] == ["ac", "a"]


def test_whether_somebody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as desk:
        address = f"127.0.0.1:{desk.getsockname()[1]}"
        assert not nobody_listens(address)
    assert nobody_listens(address)
    assert not nobody_listens("name.invalid:1")  # nothing is heard of it


def test_what_a_process_says_of_itself_is_the_newest() -> None:
    mine, _, _ = roll()
    mine.read(1, ALL, 0)
    newer = Candidate("b", "1", "b:2", opened=4)
    assert mine.read(1, {**ALL, "b": newer}, 1) == (ALL["a"], newer, ALL["c"])
    assert mine.read(1, {"a": ALL["a"]}, 2) == (ALL["a"], newer, ALL["c"])
