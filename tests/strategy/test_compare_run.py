"""compare as a user runs it: two tiny clients, a method that fails, a second start, and an end from outside."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from lightning_parablock.cli import main
from tests.support.launch import LIMIT_S, ROOT

TOYS = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]
CLIENTS = ["--trainer.accelerator", "cpu", "--trainer.devices", "2", "--strategy.blocks", "2"]
COMPARE = ["compare", *TOYS, *CLIENTS, "--strategy.local_steps", "4", "--model.learning_rate", "0.05"]
BUDGET_BYTES = 10_000


def result_of(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())["result"]


def test_two_methods_at_equal_bytes_and_a_second_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    out, broken = tmp_path / "out", tmp_path / "broken.yaml"
    broken.write_text("strategy: fedavg\nmodel:\n  init_args:\n    fail_at_step: 2\n")
    args = [*COMPARE, "--equal", "bytes", "--budget", f"{BUDGET_BYTES}", "--out", str(out), "--points", "2"]

    assert main([*args, "--strategies", f"parablock,{broken}"]) == 1
    said = capsys.readouterr()
    assert "error: 1 of 2 runs failed" in said.err
    # Both clients fail at one step; the last word is that of either, or of one that has just heard of the other.
    assert re.search(r"^\[2/2\] broken, seed 0: failed: error: .*the toy broke", said.out, re.MULTILINE)
    result = result_of(out / "runs" / "parablock-seed0")
    sent, rounds = result["upload_bytes"] / 2, result["rounds"]
    assert sent <= BUDGET_BYTES < sent * (rounds + 1) / rounds  # both blocks of the toy have one size
    assert result["loss_after"]["val_loss"] < result["loss_before"]["val_loss"]
    table = (out / "compare.md").read_text()
    assert (
        f"| parablock | 0 | {result['loss_before']['val_loss']:.4f} | {result['loss_after']['val_loss']:.4f} |" in table
    )
    assert "the toy broke" in table
    assert {"compare.csv", "compare.json", "compare.png"} <= set(os.listdir(out))

    before = (out / "runs" / "parablock-seed0" / "manifest.json").stat().st_mtime_ns
    assert main([*args, "--strategies", "parablock"]) == 0
    assert "[1/1] parablock, seed 0: kept: held-out loss" in capsys.readouterr().out
    assert (out / "runs" / "parablock-seed0" / "manifest.json").stat().st_mtime_ns == before
    assert "the toy broke" not in (out / "compare.md").read_text()
    assert main([*args, "--strategies", "parablock", "--model.learning_rate", "0.1"]) == 2
    assert "another configuration: model.init_args.learning_rate was 0.05 and is 0.1" in capsys.readouterr().err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_an_end_from_outside_ends_every_client(tmp_path: Path, number: signal.Signals, code: int) -> None:
    log = tmp_path / "runs" / "fedbcd-seed0.log"
    args = [*COMPARE, "--strategies", "fedbcd", "--out", str(tmp_path), "--model.sleep_s", "0.02"]
    command = [sys.executable, "-m", "lightning_parablock", *args, "--trainer.max_steps", "100000", "--points", "0"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        limit_s = time.monotonic() + LIMIT_S
        while not (log.is_file() and "round 2" in log.read_text()):
            assert process.poll() is None and time.monotonic() < limit_s
            time.sleep(0.1)
        process.send_signal(number)
        said, _ = process.communicate(timeout=LIMIT_S)
    assert process.returncode == code
    assert said.splitlines()[-1] == "interrupted; 0 runs are done, and the same command continues from there"
    assert "Traceback" not in said
    assert json.loads((tmp_path / "runs" / "fedbcd-seed0" / "manifest.json").read_text())["state"] != "running"
    assert str(tmp_path) not in subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True).stdout
