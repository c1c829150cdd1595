"""Trainer(strategy=...) on real processes: the scenarios of worker_fit.py, one launch for all of them."""

from __future__ import annotations

import pytest

from tests.support.launch import run_ranks

N_RANKS = 2
SCENARIOS = [
    "delay 0",
    "delay K",
    "delay K+2, star, Nesterov",
    "delay 2K, anchor",
    "kept state, Adam on the server",
    "presets",
    "validation",
    "checkpoint",
    "only the block moves",
    "uneven loaders",
    "identical loaders",
    "sampler left alone",
    "accumulation",
    "metrics",
    "starting weights",
    "bf16-true",
    "small steps",
    "two fits",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("fit")))
        return run_ranks(N_RANKS, ["-m", "tests.strategy.worker_fit"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()
