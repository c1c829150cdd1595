"""``local_steps="auto"`` on real processes: the scenarios of worker_auto.py, one launch for all of them."""

from __future__ import annotations

import re

import pytest

from tests.support.launch import run_ranks

SCENARIOS = [
    "slowest client",
    "star",
    "delay given",
    "uneven",
    "iterable",
    "capped",
    "real, sharded",
    "real, star",
    "real, int4",
    "resumed in round 0",
    "resumed later",
    "resumed early",
    "short",
    "too slow",
    "twice",
    "differs",
    "random state",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("auto")))
        return run_ranks(2, ["-m", "tests.strategy.worker_auto"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()


def test_the_reasons_are_logged_once(outputs: list[str]) -> None:
    first, second = (output.split("HOLDS slowest client")[0] for output in outputs)
    assert re.search(
        r"parablock: local_steps: \d+, agreed by the clients: the slowest client takes 0.5 s a step", first
    )
    assert "local_steps: " not in second
