"""The demo modules that Lightning brings along, unedited: the scenarios of worker_demos.py, one launch for all."""

from __future__ import annotations

import pytest

from tests.support.launch import run_ranks

SCENARIOS = [
    "BoringModel",
    "BoringModel, no delay",
    "BoringModel and its own data",
    "BoringDataModule",
    "BoringDataModuleNoLen",
    "DemoModel",
    "LightningTransformer",
    "LightningLSTM",
    "ManualOptimBoringModel",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("demos")))
        return run_ranks(2, ["-m", "tests.strategy.worker_demos"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()
