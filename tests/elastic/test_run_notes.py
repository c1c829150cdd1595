"""The next process of a site of an elastic run finds the note of the one before it, and its folder free."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.cli import main
from lightning_parablock.elastic.run_record import RunRecord
from lightning_parablock.runs.folder import MANIFEST_NAME
from lightning_parablock.settings import Settings
from lightning_parablock.strategy import elastic_run
from tests.elastic.fake_site import Board, FakeSite

MODEL = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]
TRAINER = ["--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.devices", "1"]
ELASTIC = ["--strategy.lighthouse", "127.0.0.1:29510", "--strategy.min_clients", "1", "--site", "a"]
FIT = ["fit", *MODEL, *TRAINER, *ELASTIC]


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Path | None]:
    """Where the sites of this test note their run, in the order in which they start."""
    noted: list[Path | None] = []

    def open_fake(settings: Settings, name: str, folder: Path | None, links: None) -> FakeSite:
        noted.append(folder)
        return FakeSite(Board({0: name}), 0)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("lightning_parablock.strategy.elastic_ranks.open_site", open_fake)
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    return noted


def start(*words: str) -> None:
    assert main([*FIT, *words]) == 0


def test_both_starts_of_a_command_note_the_run_in_the_folder_of_runs(folders: list[Path | None]) -> None:
    start()
    start()
    assert folders == [Path("runs"), Path("runs")]


def test_a_site_comes_back_to_the_folder_that_it_was_given(folders: list[Path | None], tmp_path: Path) -> None:
    given = tmp_path / "given"
    start("--run_dir", str(given))
    start("--run_dir", str(given))
    assert folders == [given, given]
    manifests = sorted(given.rglob(MANIFEST_NAME), key=lambda path: len(path.parts))
    assert [path.parent.name for path in manifests] == ["a", "a"]
    assert manifests[0].parent == given / "a" and manifests[1].parents[2] == given


def test_a_trial_notes_nothing(folders: list[Path | None]) -> None:
    start("--trainer.fast_dev_run", "true")
    assert folders == [None]


def test_the_note_is_the_sites_and_the_lighthouses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[RunRecord] = []

    def site_of(options: Any, arbiter: Any, host: str, settings: Settings, record: RunRecord, links: None) -> None:
        made.append(record)

    monkeypatch.setattr(elastic_run, "RunSite", site_of)
    for port in (29510, 29511):
        elastic_run.open_site(Settings(lighthouse=f"127.0.0.1:{port}", min_clients=1), "a", tmp_path)
    first, second = (record.path for record in made)
    assert first == tmp_path / "parablock-run-of-a-at-127.0.0.1-29510.json" and second != first


def test_a_note_says_from_which_runs_the_run_descends(tmp_path: Path) -> None:
    note = RunRecord(tmp_path / "run.json")
    assert note.lineage() == ()
    note.write("run", ("older", "old"))
    assert note.lineage() == ("older", "old", "run")
    note.write("run")
    assert note.lineage() == ("run",)
    for text, expected in (('{"run": "before"}', ("before",)), ("[]", ("unknown",)), ("torn", ("unknown",))):
        (tmp_path / "run.json").write_text(text)
        assert note.lineage() == expected
