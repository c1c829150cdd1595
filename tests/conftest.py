"""What concerns every process in which tests run."""

from __future__ import annotations

import gc
from collections.abc import Sequence

import pytest

_OF_ONE_PROCESS = ("desk", "pins", "property", "regroup", "unit")


def pytest_collection_modifyitems(items: Sequence[pytest.Item]) -> None:
    """With ``-n 2`` one process runs the tests that start ranks, in order; the other the rest, file by file.

    So no two tests with several ranks share the cores, and files keep their fixtures.
    """
    for item in items:
        folder, *_ = item.nodeid.removeprefix("tests/").split("/")
        group = item.nodeid.partition("::")[0] if folder in _OF_ONE_PROCESS else "ranks"
        item.add_marker(pytest.mark.xdist_group(group))


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later garbage collection, of which each fit makes one."""
    gc.collect()
    gc.freeze()
