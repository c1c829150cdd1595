"""Buffers on two clients: each one's own, or the mean where W is shown; the scenarios of worker_buffers.py."""

from __future__ import annotations

import pytest

from tests.support.launch import run_ranks


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("buffers")))
        return run_ranks(2, ["-m", "tests.strategy.worker_buffers"])


@pytest.mark.parametrize("scenario", ["local", "average", "saving alone"])
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()
