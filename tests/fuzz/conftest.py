"""Desks that end with the tests of a file."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.fuzz.desks import close_desk


@pytest.fixture(autouse=True, scope="module")
def closed_desk() -> Iterator[None]:
    """What the targets share is made at the first call."""
    yield
    close_desk()
