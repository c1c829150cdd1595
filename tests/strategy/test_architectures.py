"""Every kind of architecture under the strategy: the scenarios of worker_architectures.py, one launch for all."""

from __future__ import annotations

import pytest

from tests.architectures import ARCHITECTURES
from tests.support.launch import run_ranks

SCENARIOS = [*ARCHITECTURES, "T5, two blocks", "adapters alone travel"]


@pytest.fixture(scope="module")
def outputs() -> list[str]:
    return run_ranks(2, ["-m", "tests.strategy.worker_architectures"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()
