"""Sight of each client on real processes: the scenarios of scenarios/sight.py, and the command line's --shared."""

from __future__ import annotations

import csv
import json
import re
from pathlib import Path

import pytest

from tests.strategy.test_cli_run import FIT, manifest_of
from tests.support.launch import run_ranks
from tests.support.ranks import Ranks, alone, each_of, ranks_of

SUITE = "tests.strategy.scenarios.sight"
ranks = ranks_of(SUITE)


@each_of(SUITE)
def test_it_holds_on_every_rank(ranks: Ranks, scenario: str) -> None:
    ranks.run(scenario)


@pytest.mark.parametrize("shared", ["clients", "aggregates"])
def test_nobody_waits_for_a_client_that_is_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: str) -> None:
    monkeypatch.setenv("SCRATCH", str(tmp_path))
    survivor, _ = run_ranks(2, alone(SUITE, shared), expect_code=None)
    assert re.search(r"PeerLostError: round 0, block .*: client 1 \(rank 1 on .*\) ended on an error", survivor)
    assert "this client is broken" in survivor and "nobody noticed" not in survivor


def columns(folder: Path) -> set[str]:
    with (folder / "metrics.csv").open() as file:
        return set(next(csv.reader(file)))


@pytest.mark.parametrize("shared", ["clients", "aggregates"])
def test_what_the_first_clients_files_say_of_the_other(tmp_path: Path, shared: str) -> None:
    folder = tmp_path / "run"
    args = [*FIT, "--trainer.max_steps", "8", "--shared", shared, "--run_dir", str(folder)]
    first, _ = run_ranks(2, ["-m", "lightning_parablock", *args])
    manifest = manifest_of(folder)
    written = [path for path in folder.rglob("*") if path.is_file() and path.suffix != ".png"]
    of_client_1 = {path.name for path in written if path.name == "rank00001.pt"}  # it writes that one itself
    told = [path.name for path in written if path.name not in of_client_1 and says_client_1(path)]
    of_one = {name for name in columns(folder) if "_client_" in name}
    assert manifest["clients"] == manifest["result"]["clients"] == 2
    assert {"parablock/drift_mean", "parablock/participation_min", "parablock/samples_total"} <= columns(folder)
    if shared == "clients":
        assert sorted(told) == ["manifest.json", "metrics.csv", "timeline.json"]
        assert "parablock/drift_client_1" in of_one and "by all clients" in first
    else:
        assert (told, of_one) == ([], set())
        assert "by this client" in first
        assert len(manifest["hosts"]) == len(manifest["data"]) == 1
        assert "rows_per_client" not in manifest["data"][0]


def says_client_1(path: Path) -> bool:
    """Whether a file of the run's folder has anything that is client 1's alone."""
    text = path.read_text(errors="replace")
    if path.name == "timeline.json":
        return any(event["pid"] == 1 for event in json.loads(text)["traceEvents"])
    return any(word in text for word in ("client_1", "client 1", "fingerprint of 1"))
