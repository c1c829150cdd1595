"""Desks that end with the test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from lightning_parablock.desk.caller import close_connections
from lightning_parablock.desk.service import Desk


@pytest.fixture
def opened() -> Iterator[Callable[..., Desk]]:
    """Opens desks on this machine."""
    desks: list[Desk] = []

    def open_desk(port: int = 0, **options: Any) -> Desk:
        desks.append(Desk("127.0.0.1", port, **options))
        return desks[-1]

    yield open_desk
    close_connections()
    for desk in desks:
        desk.close(0.1)


@pytest.fixture
def desk(opened: Callable[..., Desk]) -> Desk:
    return opened()
