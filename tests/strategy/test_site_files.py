"""What each site sees and keeps when sites have names: bar, table, run folder, and a report from any of them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_parablock.cli import main
from lightning_parablock.report.page_clients import client_rows
from lightning_parablock.runs.files import read_run
from tests.strategy.test_cli_run import FIT, manifest_of, rows_of
from tests.support.launch import run_ranks

SITES = ("oslo", "lyon")
"""In the order in which the launcher numbers them; their own order is that of the names."""


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sites")


@pytest.fixture(scope="module")
def outputs(root: Path) -> dict[str, str]:
    args = [*FIT, "--trainer.max_steps", "14", "--run_dir", str(root)]
    said = run_ranks(2, ["-m", "lightning_parablock", *args], own_arguments=lambda rank: ["--site", SITES[rank]])
    return dict(zip(SITES, said, strict=True))


@pytest.mark.parametrize("site", SITES)
def test_every_site_sees_its_bar_and_the_table(outputs: dict[str, str], root: Path, site: str) -> None:
    text = " ".join(outputs[site].split())
    assert f"site {site} round 3 (4 of 4 done)" in text
    assert "s so far exchanged" in text
    for expected in ("training", "by all clients (site " + site, "summed over all clients (site " + site):
        assert expected in text, expected
    assert f"run folder: {root / site}" in outputs[site]


@pytest.mark.parametrize("site", SITES)
def test_every_site_keeps_a_whole_run_folder(outputs: dict[str, str], root: Path, site: str) -> None:
    folder, manifest = root / site, manifest_of(root / site)
    names = {path.name for path in folder.iterdir()}
    assert {"manifest.json", "config.yaml", "metrics.csv", "timeline.json", "timeline.png"} <= names
    rank = sorted(SITES).index(site)
    assert (manifest["state"], manifest["site"], manifest["rank"]) == ("finished", site, rank)
    assert manifest["sites"] == sorted(SITES) and manifest["clients"] == 2
    assert manifest["result"]["here"]["name"] == f"site {site}"
    assert [float(row["parablock/round"]) for row in rows_of(folder)] == [0, 1, 2, 3]
    columns = set(rows_of(folder)[0])
    assert {f"parablock/participation_site_{name}" for name in SITES} <= columns
    assert not [name for name in columns if "_client_" in name]
    events: list[dict[str, Any]] = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    processes = [event["args"]["name"] for event in events if event["name"] == "process_name"]
    assert processes == ["site lyon", "site oslo"]
    assert main(["report", str(folder)]) == 0
    page = (folder / "report.html").read_text()
    assert "site lyon exchange" in page and "site oslo exchange" in page and "client 0" not in page


def test_every_site_has_the_finished_model_in_its_own_folder(outputs: dict[str, str], root: Path) -> None:
    files = [root / site / "checkpoints" / "final.ckpt" for site in SITES]
    one, other = (torch.load(file, weights_only=True)["state_dict"] for file in files)
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_every_site_is_told_which_weights_all_have(outputs: dict[str, str], root: Path) -> None:
    (weights,) = {manifest_of(root / site)["result"]["weights_sha256"] for site in SITES}
    assert len(weights) == 64
    for site in SITES:
        assert f"weights: sha256 {weights[:16]}, the same on every client" in outputs[site]


def test_the_metrics_of_a_site_are_its_own(outputs: dict[str, str], root: Path) -> None:
    times = [[row["parablock/compute_s"] for row in rows_of(root / site)] for site in SITES]
    assert times[0] != times[1]


def test_a_site_that_shares_nothing_keeps_and_shows_its_own(tmp_path: Path) -> None:
    """Each folder and its page have this site's figures, under its own name and number, and none of the other's."""
    args = [*FIT, "--trainer.max_steps", "8", "--shared", "nothing", "--run_dir", str(tmp_path)]
    said = run_ranks(2, ["-m", "lightning_parablock", *args], own_arguments=lambda rank: ["--site", SITES[rank]])
    for site, text in zip(SITES, said, strict=True):
        folder, rank = tmp_path / site, sorted(SITES).index(site)
        assert "by this client" in text
        assert [path.name for path in folder.glob("sight-*")] == [f"sight-site_{site}.jsonl"]
        manifest = manifest_of(folder)
        assert len(manifest["hosts"]) == 1 and manifest["sites"] == sorted(SITES)
        assert [data["train_fingerprint"] for data in manifest["data"]] == [f"fingerprint of {rank}"]
        rows = client_rows(read_run(folder))
        assert [row[0] for row in rows] == [f"site {site}"] and rows[0][1] == manifest["hosts"][0]


def test_every_site_sees_what_a_validation_found(tmp_path: Path) -> None:
    args = ["validate", *FIT[1:], "--run_dir", str(tmp_path)]
    said = run_ranks(2, ["-m", "lightning_parablock", *args], own_arguments=lambda rank: ["--site", SITES[rank]])
    found = [re.search(r"val_loss\W+(\d\.\d{4})", text) for text in said]
    assert found[0] is not None and found[1] is not None and found[0][1] == found[1][1]
