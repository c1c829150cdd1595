"""Bits are compared here: one thread, as everywhere."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.threads import on_one_thread


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    with on_one_thread():
        yield
