"""Places that cannot be written: one line before anything is loaded, and the cause first where it happens later."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lightning_parablock.cli import main
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.runs.run import Run
from lightning_parablock.system.places import refuse_unwritable, refuse_unwritable_file

MODEL = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]
FIT = ["fit", *MODEL, "--trainer.accelerator", "cpu", "--trainer.max_steps", "2", "--trainer.devices", "1"]
UNWRITABLE = Path("/proc/self")
"""A folder in which not even root can create a file."""


@pytest.fixture
def file_in_the_way(tmp_path: Path) -> Path:
    (tmp_path / "file").write_text("kept")
    return tmp_path / "file"


def complaint(capsys: pytest.CaptureFixture[str], words: list[str]) -> str:
    """The one line on stderr after ``error:``, with exit code 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-parablock"])
        assert main(words) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set to" not in line]
    assert len(lines) == 1, lines
    return lines[0].removeprefix("error: ")


def test_a_place_is_checked_and_left_as_it_was(tmp_path: Path, file_in_the_way: Path) -> None:
    for place in (tmp_path, tmp_path / "new", tmp_path / "new" / "newer"):
        refuse_unwritable(place, "out")
    refuse_unwritable_file(file_in_the_way, "output")
    refuse_unwritable_file(tmp_path / "new" / "page.html", "output")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert file_in_the_way.read_text() == "kept"


@pytest.mark.parametrize(
    ("check", "place", "said"),
    [
        (refuse_unwritable, "file", "run_dir FOLDER/file cannot be written: it is a file; name another place"),
        (refuse_unwritable, "file/a/b", "run_dir FOLDER/file/a/b cannot be written: FOLDER/file is a file; name"),
        (refuse_unwritable, str(UNWRITABLE), f"run_dir {UNWRITABLE} cannot be written: "),
        (refuse_unwritable, f"{UNWRITABLE}/runs", f" in {UNWRITABLE}; name another place, or make it writable"),
        (refuse_unwritable_file, ".", "run_dir FOLDER is a folder; name a file"),
        (refuse_unwritable_file, "file/page.html", "run_dir FOLDER/file/page.html: folder FOLDER/file cannot be"),
    ],
)
def test_what_cannot_be_written(tmp_path: Path, file_in_the_way: Path, check: object, place: str, said: str) -> None:
    assert callable(check)
    with pytest.raises(ConfigurationError) as error:
        check(tmp_path / place, "run_dir")
    assert said.replace("FOLDER", str(tmp_path)) in str(error.value)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*FIT, "--run_dir", "FILE"], "run_dir FILE cannot be written: it is a file"),
        ([*FIT, "--run_dir", "FILE/run"], "run_dir FILE/run cannot be written: FILE is a file"),
        ([*FIT, "--run_dir", str(UNWRITABLE)], f"run_dir {UNWRITABLE} cannot be written"),
        ([*FIT, "--trainer.default_root_dir", "FILE"], "the folder of runs FILE cannot be written: it is a file"),
        (["compare", *MODEL, "--trainer.devices", "2", "--out", "FILE"], "out FILE cannot be written: it is a file"),
        (["compare", *MODEL, "--trainer.devices", "2", "--out", f"{UNWRITABLE}/x"], "cannot be written"),
        (["export", "--ckpt_path", "FILE", "--output", "FILE/model"], "folder FILE cannot be written: it is a file"),
        (["export", "--ckpt_path", "FILE", "--output", f"{UNWRITABLE}/x"], "cannot be written"),
        (["evaluate", "--ckpt_path", "FILE", "--data.source", "x", "--output", f"{UNWRITABLE}/x"], "cannot be written"),
        (["evaluate", "--ckpt_path", "FILE", "--data.source", "x", "--output", "."], "is a folder; name a file"),
        (["plan", "--model", "llama3-8b", "--rate", "1gbit", "--output", "FILE/x"], "FILE cannot be written"),
        (["report", "RUN", "--output", "FILE/page.html"], "folder FILE cannot be written: it is a file"),
        (["report", "RUN", "--output", "."], "output . is a folder; name a file"),
    ],
)
def test_every_command_says_so_in_one_line(
    capsys: pytest.CaptureFixture[str], file_in_the_way: Path, words: list[str], said: str
) -> None:
    (file_in_the_way.parent / "run").mkdir()
    (file_in_the_way.parent / "run" / "manifest.json").write_text(json.dumps({"state": "finished"}))
    named = {"FILE": str(file_in_the_way), "RUN": str(file_in_the_way.parent / "run")}
    for name, path in named.items():
        words, said = [word.replace(name, path) for word in words], said.replace(name, path)
    assert said in complaint(capsys, words)


def test_the_model_is_not_built_for_a_folder_that_cannot_be_written(
    capsys: pytest.CaptureFixture[str], file_in_the_way: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise AssertionError("the model was built")

    monkeypatch.setattr("tests.support.cli_toys.Toy.__init__", fail)
    assert "is a file" in complaint(capsys, [*FIT, "--run_dir", str(file_in_the_way)])


# --- a folder that can no longer be written --------------------------------------------------------------------------


def read_only(path: object, *_: object, **__: object) -> None:
    raise OSError(30, "Read-only file system", str(path))


def test_the_cause_comes_first_where_the_end_cannot_be_recorded(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for end in ("failed", "interrupted", "crashed", "finished"):
        run = Run()
        run.open_folder(str(tmp_path / end), None)
        run.begin({})
        with monkeypatch.context() as patch:
            patch.setattr("lightning_parablock.runs.manifest.write_atomically", read_only)
            patch.setattr(Path, "write_text", read_only)
            if end == "failed":
                assert run.failed(ParaBlockError("the cause")) == 1
            elif end == "interrupted":
                assert run.interrupted("Ctrl-C", 130) == 130
            elif end == "crashed":
                run.crashed(ZeroDivisionError("the cause"))
            else:
                assert run.finish() == 1
        lines = capsys.readouterr().err.splitlines()
        first = {"failed": ["error: the cause"], "interrupted": ["interrupted: Ctrl-C"]}.get(end, [])
        assert lines[:-1] == first
        assert f"{tmp_path / end} cannot be written (Read-only file system), so the end is not recorded" in lines[-1]


def test_a_file_of_the_run_that_cannot_be_written_is_one_named_error(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["lightning-parablock"])
    folder = tmp_path / "run"

    def fail(self: object) -> None:
        raise OSError(30, "Read-only file system", str(folder / "metrics.csv"))

    monkeypatch.setattr("lightning.fabric.loggers.csv_logs._ExperimentWriter.save", fail)
    words = [*FIT, "--trainer.log_every_n_steps", "1", "--run_dir", str(folder), "--trainer.enable_checkpointing=false"]
    assert main([*words, "--validate_before_and_after=false"]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(errors) == 1
    assert errors[0].startswith(f"error: {folder}{os.sep}metrics.csv cannot be written: Read-only file system")
    assert json.loads((folder / "manifest.json").read_text())["state"].startswith("failed: ")
