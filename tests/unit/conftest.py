"""What one test in this process must not leave behind for the next."""

from __future__ import annotations

from collections.abc import Generator

import pytest
from lightning_utilities.core.rank_zero import rank_zero_only


@pytest.fixture(autouse=True)
def same_rank_afterwards() -> Generator[None]:
    """Meetings and launchers' variables set the rank of the process, which Lightning keeps on this function."""
    before = getattr(rank_zero_only, "rank", None)
    yield
    setattr(rank_zero_only, "rank", before)  # noqa: B010
