"""Stopped anywhere and resumed, on real processes: the scenarios of worker_resume.py, one launch for all of them."""

from __future__ import annotations

import pytest

from tests.support.launch import run_ranks

N_RANKS = 2
SCENARIOS = [
    "mid-round",
    "round's end",
    "first step",
    "epoch's last batch",
    "validation",
    "epoch's end",
    "delay 0",
    "delay 2K, star",
    "delay K+2, anchor",
    "bf16-true",
    "int4",
    "bf16-true, int8",
    "offloaded state",
    "bf16-true, kept state",
    "uneven",
    "accumulation",
    "at max_steps",
    "at max_epochs",
    "at max_rounds",
    "worker processes",
    "own generator",
    "iterable",
    "two loaders",
    "stateful",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("resume")))
        return run_ranks(N_RANKS, ["-m", "tests.strategy.worker_resume"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()
