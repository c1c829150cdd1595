"""Clients with data of their own: all rows are trained on, validated and predicted, each once."""

from __future__ import annotations

import re

import pytest

from tests.support.launch import run_ranks

SCENARIOS = [
    "all rows are used and validated",
    "loaders of one's own",
    "a writer gets each row once",
    "a bad site is named on both",
]


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCRATCH", str(tmp_path_factory.mktemp("sites")))
        return run_ranks(2, ["-m", "tests.strategy.worker_own_data"])


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_it_holds_on_every_rank(outputs: list[str], scenario: str) -> None:
    for output in outputs:
        assert f"HOLDS {scenario}" in output.splitlines()


def test_every_client_shows_its_rows_and_no_other_clients(outputs: list[str]) -> None:
    for client, output in enumerate(outputs):
        lines = re.findall(r"parablock: train: (client \d): \d+ of \d+ rows", output)
        assert lines and set(lines) == {f"client {client}"}
