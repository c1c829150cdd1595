"""How long a collective waits for whom."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from lightning_parablock.elastic.gathers import Gathers
from lightning_parablock.errors import PeerTimeoutError
from lightning_parablock.regroup.log import MembershipLog, Record


class _Alone:
    """The hub, which waits for another member."""

    client, log, is_apart = 0, MembershipLog((Record(0, (0, 1), (), (0, 1), 0),)), False

    def __init__(self) -> None:
        self.gathers: Gathers | None = None
        self.checks = 0

    def check(self) -> None:
        self.checks += 1

    def describe(self, client: int) -> str:
        return f"site {client}"

    def ask(self, *args: Any) -> Any:
        raise AssertionError("nobody else is asked here")


def _gathers(limit_s: float, apart_limit_s: float, monkeypatch: pytest.MonkeyPatch) -> tuple[_Alone, Gathers]:
    monkeypatch.setattr("lightning_parablock.elastic.gathers._POLL_S", 0.05)
    monkeypatch.setattr("lightning_parablock.elastic.gathers._ASK_S", 1000.0)
    site = _Alone()
    gathers = Gathers(site, limit_s, apart_limit_s)  # type: ignore[arg-type]
    monkeypatch.setattr(gathers, "_ask_who_has_left", lambda number, slot: None)
    return site, gathers


def test_a_slow_member_is_waited_for_as_long_as_a_straggler(monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(60.0, 0.2, monkeypatch)
    came = threading.Timer(1.0, lambda: gathers._collect((3, 0), "mean", 1, b"theirs"))
    came.start()
    assert gathers.gather("mean", b"mine", 3) == {0: b"mine", 1: b"theirs"}
    came.join()
    assert site.checks > 1


@pytest.mark.parametrize(("is_apart", "option"), [(False, "straggler_timeout_s=0.2"), (True, "rejoin_timeout_s=0.1")])
def test_the_error_names_the_option(is_apart: bool, option: str, monkeypatch: pytest.MonkeyPatch) -> None:
    site, gathers = _gathers(0.2, 0.1, monkeypatch)
    site.is_apart = is_apart
    with pytest.raises(
        PeerTimeoutError, match=rf"collective 0 of round 3 \(mean\): site 1 has not come within {option} s"
    ):
        gathers.gather("mean", b"mine", 3)
