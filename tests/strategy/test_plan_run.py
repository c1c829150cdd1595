"""``lightning-parablock plan --probe`` on two processes: both measure, one speaks, a lost one ends the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from tests.support.launch import run_ranks
from tests.unit.tiny_text import save_tiny_llama

PLAN = ["-m", "tests.strategy.worker_plan"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_llama(tmp_path_factory.mktemp("tiny-llama"), hidden_size=64, intermediate_size=128)


def test_two_processes_measure_steps_and_links_together(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "plan.yaml"
    words = ["--model", str(folder), "--probe", "--sequence_length", "8", "--output", str(output)]
    first, second = run_ranks(2, [*PLAN, *words])
    text = " ".join(first.split())
    assert "clients 2" in text
    assert re.search(r"links [\d.]+ [kMG]bit/s.* \(the slowest, measured\)", text)
    assert "measured on 2 machines, the slowest counts: " in text
    assert "premises" not in second
    assert yaml.safe_load(output.read_text())["strategy"]["topology"] in ("sharded", "star")


def test_what_one_process_cannot_measure_ends_both_with_the_same_line(folder: Path) -> None:
    words = ["--model", str(folder), "--probe", "--sequence_length", "8"]
    outputs = run_ranks(2, [*PLAN, *words, "--no-memory-on", "1"], expect_code=2)
    lines = {line for output in outputs for line in output.splitlines() if line.startswith("error: ")}
    (line,) = lines
    assert re.search(r"rank 1 on .*: the probe of 2 layers needs more memory than is free", line)


def test_a_process_that_is_lost_ends_the_other_with_an_error(folder: Path) -> None:
    words = ["--model", str(folder), "--probe", "--sequence_length", "8"]
    first, _ = run_ranks(2, [*PLAN, *words, "--lost", "1"], expect_code=None)
    assert "error: the probe's clients did not all come through" in first
