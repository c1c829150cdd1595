"""Open files: the limit goes up as far as it may, and a shortage is told while there are still some left."""

from __future__ import annotations

import logging
import os
import resource
from collections.abc import Iterator
from typing import Any

import pytest

from lightning_parablock.membership import descriptors
from lightning_parablock.membership.descriptors import Descriptors, raise_limit


@pytest.fixture
def limits(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """The soft and the hard limit, which only seem to change."""
    limits = [256, 1 << 20]

    def set_limits(_: int, wanted: Any) -> None:
        limits[:] = wanted

    def get_limits(_: int) -> Any:
        return tuple(limits)

    monkeypatch.setattr(resource, "getrlimit", get_limits)
    monkeypatch.setattr(resource, "setrlimit", set_limits)
    yield limits


def test_the_limit_is_raised_and_a_low_one_is_said(limits: list[int], caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        raise_limit()
        assert limits == [1 << 16, 1 << 20]
        assert not caplog.records
        limits[:] = [256, 1024]
        raise_limit()
    assert limits == [1024, 1024]
    assert "may hold only 1024 open files and connections" in caplog.text
    limits[:] = [1 << 18, 1 << 18]
    raise_limit()
    assert limits == [1 << 18, 1 << 18]


def test_a_shortage_is_told_before_there_is_none_left(limits: list[int]) -> None:
    kept = Descriptors()
    limits[0] = len(os.listdir("/proc/self/fd")) + 100
    assert kept.shortage() is None
    more = [os.open(os.devnull, os.O_RDONLY) for _ in range(80)]
    shortage = kept.shortage()
    assert shortage is not None
    assert f"of {limits[0]} open files and connections are in use" in shortage
    kept.release()
    assert kept.shortage() is None, "those kept back are usable again"
    kept.release()
    for descriptor in more:
        os.close(descriptor)
    assert descriptors._limit() == limits[0]  # pyright: ignore[reportPrivateUsage]
