"""What benchmarks end with: where results go, and that a failed part is seen."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness import publish as module
from benchmarks.harness.publish import QUICK_RESULTS, failures, folder, publish
from benchmarks.harness.results import RESULTS, read_result

VALUES: dict[str, Any] = {"alone": {"failed": None, "rounds": [1.0]}, "rows": [{"failed": "no such host"}, {"x": 2}]}


def test_failures_are_found_wherever_they_are() -> None:
    assert list(failures(VALUES)) == ["no such host"]
    assert list(failures({"alone": VALUES["alone"]})) == []


def test_quick_results_stand_apart() -> None:
    assert folder(argparse.Namespace(quick=True)) == QUICK_RESULTS
    assert folder(argparse.Namespace(quick=False)) == RESULTS


@pytest.mark.parametrize("quick", [True, False])
def test_a_failed_part_is_written_and_ends_a_quick_run(
    quick: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[tuple[str, Path]] = []
    monkeypatch.setattr(module, "folder", lambda _: tmp_path)
    monkeypatch.setattr(module, "draw", lambda *what: drawn.append(what))
    options = argparse.Namespace(quick=quick, train_file="/far/away/train.jsonl")
    try:
        publish("a_question", options, seeds=[0], network={}, values=VALUES)
    except SystemExit as end:
        assert quick and end.code == 1
    else:
        assert not quick
    assert drawn == [("a_question", tmp_path)]
    assert "a_question: 1 failed, the first: no such host" in capsys.readouterr().out
    written = read_result(tmp_path / "a_question.json")
    assert written["configuration"] == {"quick": quick, "train_file": "train.jsonl"}
    assert written["values"] == VALUES
