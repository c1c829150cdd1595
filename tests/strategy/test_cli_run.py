"""The command line as a user runs it: what a run leaves behind, what it says, and how it ends."""

from __future__ import annotations

import csv
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.cli import main
from tests.support.launch import LIMIT_S, ROOT, run_ranks

TOYS = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]
BLOCKS = ["--strategy", '{"init_args": {"blocks": 2, "local_steps": 4}}', "--trainer.accelerator", "cpu"]
FIT = ["fit", *TOYS, *BLOCKS]


def in_process(monkeypatch: pytest.MonkeyPatch, *args: str) -> int:
    monkeypatch.setattr("sys.argv", ["lightning-parablock", *args])
    return main()


def manifest_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open() as file:
        return [row for row in csv.DictReader(file) if row["parablock/round"]]


def test_two_clients_leave_a_complete_run_folder(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = [*FIT, "--trainer.max_steps", "14", "--run_dir", str(folder)]
    first, second = run_ranks(2, ["-m", "lightning_parablock", *args])

    assert "round 3 (4 of 4 done)" in first
    assert "held-out loss" in first
    assert f"run folder: {folder}" in first
    assert "4 of 4 done" not in second
    assert {"manifest.json", "config.yaml", "metrics.csv", "timeline.json", "timeline.png"} <= set(os.listdir(folder))

    manifest = manifest_of(folder)
    assert manifest["state"] == "finished"
    assert manifest["clients"] == len(manifest["hosts"]) == 2
    assert [data["train_fingerprint"] for data in manifest["data"]] == ["fingerprint of 0", "fingerprint of 1"]
    assert manifest["strategy"]["settings"]["local_steps"] == "4"
    assert manifest["configuration"]["trainer"]["max_steps"] == 14
    result = manifest["result"]
    assert (result["rounds"], result["clients"]) == (4, 2)
    assert result["loss_after"]["val_loss"] < result["loss_before"]["val_loss"]
    assert result["upload_bytes"] == result["download_bytes"] > 0

    assert [float(row["parablock/round"]) for row in rows_of(folder)] == [0, 1, 2, 3]
    events = json.loads((folder / "timeline.json").read_text())["traceEvents"]
    computed = [(e["pid"], e["args"]["round"]) for e in events if e["ph"] == "X" and e["cat"] == "compute"]
    assert sorted(computed) == [(client, t) for client in range(2) for t in range(4)]


def test_a_wrong_value_ends_every_rank_with_one_line(tmp_path: Path) -> None:
    args = ["fit", *TOYS, "--strategy.local_steps", "0", "--run_dir", str(tmp_path / "run")]
    for output in run_ranks(2, ["-m", "lightning_parablock", *args], expect_code=2):
        assert [line for line in output.splitlines() if "Seed set" not in line] == [
            "error: local_steps must be a whole number >= 1 (optimizer steps per round, or 'auto'), got 0"
        ]
    assert not (tmp_path / "run").exists()


def test_a_run_can_be_repeated_from_its_own_configuration(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert in_process(monkeypatch, *FIT, "--trainer.max_steps", "8", "--run_dir", str(first)) == 0
    again = ["fit", "--config", str(first / "config.yaml"), "--run_dir", str(second)]
    assert in_process(monkeypatch, *again) == 0
    assert manifest_of(second)["result"]["loss_after"] == manifest_of(first)["result"]["loss_after"]


def test_folders_are_named_by_time_under_the_root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    assert in_process(monkeypatch, *FIT, "--trainer.max_steps", "4") == 0
    assert in_process(monkeypatch, *FIT, "--trainer.max_steps", "4", "--trainer.default_root_dir", "mine") == 0
    for root in ("runs", "mine"):
        (folder,) = (tmp_path / root).iterdir()
        assert manifest_of(folder)["state"] == "finished"


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_the_other_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    assert in_process(monkeypatch, command, *FIT[1:], "--run_dir", str(tmp_path / "run")) == 0
    assert manifest_of(tmp_path / "run")["subcommand"] == command


def test_predictions_of_two_ranks_are_in_one_file_each_row_once(tmp_path: Path) -> None:
    path = tmp_path / "predictions.jsonl"
    args = ["predict", *FIT[1:], "--output", str(path), "--run_dir", str(tmp_path / "run")]
    first, second = run_ranks(2, ["-m", "lightning_parablock", *args])
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["row"] for line in lines] == list(range(64))
    assert all(list(line) == ["row", "prediction"] and len(line["prediction"]) == 8 for line in lines)
    assert f"predictions: {path} (64 rows)" in first and "predictions:" not in second
    assert "identical data sets: each takes one of 2" in first and "sampler of their own" not in first


def test_predictions_are_kept_in_the_run_folder_and_never_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert in_process(monkeypatch, "predict", *FIT[1:], "--run_dir", str(tmp_path / "run")) == 0
    kept = tmp_path / "run" / "predictions.jsonl"
    assert len(kept.read_text().splitlines()) == 64
    args = ["predict", *FIT[1:], "--output", str(kept), "--run_dir", str(tmp_path / "other")]
    assert in_process(monkeypatch, *args) == 2
    assert f"error: predictions: {kept} exists and is not overwritten" in capsys.readouterr().err
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("option", ["source", "val_source"])
def test_data_paths_are_checked_before_the_model_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], option: str
) -> None:
    (tmp_path / "mine.jsonl").write_text("{}")
    monkeypatch.setattr("tests.support.cli_toys.Toy.__init__", lambda *_, **__: pytest.fail("the model was built"))
    sources = {"source": str(tmp_path / "mine.jsonl"), option: str(tmp_path / "mien.jsonl")}
    data = [word for name, value in sources.items() for word in (f"--data.{name}", value)]
    assert in_process(monkeypatch, "fit", *TOYS[:2], *BLOCKS, *data, "--run_dir", str(tmp_path / "run")) == 2
    said = f"error: data.{option}: data file {tmp_path}/mien.jsonl does not exist; did you mean {tmp_path}/mine.jsonl?"
    assert said in capsys.readouterr().err


def test_a_plain_lightning_strategy_still_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = ["fit", *TOYS, "--strategy", "auto", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]
    assert in_process(monkeypatch, *args, "--run_dir", str(tmp_path / "run")) == 0
    assert manifest_of(tmp_path / "run")["result"]["rounds"] == 0
    assert not (tmp_path / "run" / "timeline.png").exists()


def test_no_validation_where_it_is_not_wanted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    args = [*FIT, "--trainer.max_steps", "4", "--validate_before_and_after", "false"]
    assert in_process(monkeypatch, *args, "--run_dir", str(tmp_path / "run")) == 0
    assert manifest_of(tmp_path / "run")["result"]["loss_after"] == {}
    assert "held-out" not in capsys.readouterr().out


def test_an_error_of_the_package_is_one_line_and_its_traceback_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    args = [*FIT, "--trainer.max_steps", "8", "--model.fail_at_step", "5", "--run_dir", str(folder)]
    assert in_process(monkeypatch, *args) == 1
    errors = capsys.readouterr().err
    assert f"error: the toy broke (traceback: {folder}/error-rank0.txt)" in errors.splitlines()
    assert "Traceback" not in errors
    assert "training_step" in (folder / "error-rank0.txt").read_text()
    assert manifest_of(folder)["state"] == "failed: the toy broke"


def test_an_unexpected_error_keeps_its_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    args = [*FIT, "--model.fail_at_step", "1", "--model.fail_with", "unknown", "--run_dir", str(tmp_path / "run")]
    with pytest.raises(ZeroDivisionError):
        in_process(monkeypatch, *args)
    assert manifest_of(tmp_path / "run")["state"] == "failed: ZeroDivisionError: oh"


def test_a_dry_run_prints_the_plan_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    args = [*FIT, "--dry-run", "--trainer.devices", "3"]
    assert in_process(monkeypatch, *args) == 0
    text = " ".join(capsys.readouterr().out.split())
    for expected in (
        "clients 3",
        "blocks 2",
        "network.0..network.1 144",
        "first 12 rounds train:",
        "rows per client [32, 32]",
    ):
        assert expected in text
    assert list(tmp_path.iterdir()) == []


def test_a_dry_run_speaks_once_under_a_launcher() -> None:
    first, second = run_ranks(2, ["-m", "lightning_parablock", *FIT, "--dry-run"])
    assert "clients" in first
    assert "blocks" not in second


def test_ctrl_c_ends_at_once_with_one_line(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    args = [*FIT, "--model.sleep_s", "0.05", "--trainer.max_steps", "100000", "--run_dir", str(folder)]
    command = [sys.executable, "-m", "lightning_parablock", *args]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "round 2" in line:
                break
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=LIMIT_S)
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "interrupted: Ctrl-C"
    assert "Traceback" not in errors
    assert manifest_of(folder)["state"] == "interrupted: Ctrl-C"
    (command,) = re.findall(r"to continue exactly from there: (lightning-parablock fit .*)", errors)
    assert command.endswith(f"--ckpt_path {folder / 'stopped.ckpt'}") and "--run_dir" not in command
    assert (folder / "stopped.ckpt").is_file()


def test_the_console_script_says_its_version() -> None:
    script = Path(sys.executable).with_name("lightning-parablock")
    words = [str(script)] if script.exists() else [sys.executable, "-m", "lightning_parablock"]
    done = subprocess.run([*words, "--version"], cwd=ROOT, capture_output=True, text=True, timeout=LIMIT_S, check=True)
    assert done.stdout.splitlines()[0] == "lightning-parablock 0.1.0"
