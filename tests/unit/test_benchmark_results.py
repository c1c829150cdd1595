"""Result files: one schema, written whole or not at all."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from benchmarks.harness.results import FIELDS, REPOSITORY, read_result, write_result


def write(directory: Path, **changes: Any) -> Path:
    arguments: dict[str, Any] = {
        "configuration": {"local_steps": 4},
        "seeds": [0, 1],
        "network": {"rate": "100mbit", "hosts": 2},
        "values": {"round_s": [1.5, 1.25]},
    }
    return write_result("a_question", directory=directory, **(arguments | changes))


def test_what_was_written_is_read_back(tmp_path: Path) -> None:
    path = write(tmp_path / "results")
    record = read_result(path)
    assert path.name == "a_question.json"
    assert tuple(record) == FIELDS
    assert record["values"] == {"round_s": [1.5, 1.25]}
    assert record["seeds"] == [0, 1]
    assert record["hardware"]["cores"] >= 1
    assert record["versions"]["torch"]
    assert set(record["git"]) == {"sha", "dirty"}


def test_a_list_of_numbers_takes_one_line(tmp_path: Path) -> None:
    values = {"round_s": [1.5, -2, 1e-9], "names": ["[\\n1", "a  b"], "pairs": [[1, 2], []]}
    path = write(tmp_path, values=values)
    assert read_result(path)["values"] == values
    assert '"round_s": [ 1.5, -2, 1e-09 ]' in path.read_text()


def test_no_place_of_this_machine_is_written(tmp_path: Path) -> None:
    assert str(REPOSITORY) not in write(tmp_path).read_text()


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), object()])
def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path: Path, bad: object) -> None:
    before = write(tmp_path).read_text()
    with pytest.raises(ValueError, match="'a_question' is not JSON"):
        write(tmp_path, values={"round_s": [bad]})
    assert (tmp_path / "a_question.json").read_text() == before
    assert len(list(tmp_path.iterdir())) == 1


def test_a_write_that_breaks_off_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    before = write(tmp_path).read_text()

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path, seeds=[7])
    assert [path.name for path in tmp_path.iterdir()] == ["a_question.json"]
    assert (tmp_path / "a_question.json").read_text() == before


def test_names_and_foreign_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="lower-case"):
        write_result("../up", configuration={}, seeds=[], network={}, values={}, directory=tmp_path)
    other = tmp_path / "other.json"
    other.write_text(json.dumps({"values": 1}))
    with pytest.raises(ValueError, match=r"other\.json is no result file: it lacks schema_version, question"):
        read_result(other)
    record = json.loads(write(tmp_path).read_text())
    other.write_text(json.dumps(record | {"schema_version": 0}))
    with pytest.raises(ValueError, match="schema 0"):
        read_result(other)
