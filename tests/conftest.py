"""What concerns every process in which tests run."""

from __future__ import annotations

import gc


def pytest_collection_finish() -> None:
    """Leave what the imports have made out of every later garbage collection, of which each fit makes one."""
    gc.collect()
    gc.freeze()
