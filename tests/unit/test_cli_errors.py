"""What a user sees after a typing error: one line that names the nearest right thing, and exit code 2."""

from __future__ import annotations

import random
from pathlib import Path

import lightning.pytorch  # noqa: F401  # its log writes to what stderr is when it is imported, which a test replaces
import pytest

from lightning_parablock.cli import main
from lightning_parablock.cli.option_names import nearest_option
from lightning_parablock.cli.table import COMMANDS

TOYS = ["--model", "tests.support.cli_toys.Toy", "--data", "tests.support.cli_toys.ToyData"]


def complaint(capsys: pytest.CaptureFixture[str], args: list[str]) -> str:
    """The one line on stderr after ``error:``, with exit code 2."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sys.argv", ["lightning-parablock"])
        try:
            code = main(args)
        except SystemExit as ended:
            code = ended.code
    lines = [line for line in capsys.readouterr().err.splitlines() if "Seed set to" not in line]
    assert code == 2
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    return lines[0]


@pytest.mark.parametrize(
    ("words", "named"),
    [
        ("--strategy parablok", "did you mean 'parablock'"),
        (
            "--shared aggregates --trainer.callbacks+ lightning_parablock.callbacks.ClientSight",
            "--shared aggregates, but the ClientSight among the callbacks has shared='clients', which tells more",
        ),
        ("--strategy.local_step 8", "--strategy.local_step is not known; did you mean --strategy.local_steps?"),
        ("--trainer.strategy.local_step 8", "did you mean --strategy.local_steps?"),
        ("--strategy.block_order shufle", "did you mean 'shuffle'?"),
        ("--strategy.server_optimizer nesterof", "did you mean 'nesterov'?"),
        ("--strategy.local_steps x", "--strategy.local_steps must be 'auto' or a whole number, got 'x'"),
        ("--strategy.local_steps auot", "or a whole number, got 'auot'; did you mean 'auto'?"),
        ("--strategy.aggregation secured", "did you mean 'secure'?"),
        (
            "--strategy.aggregation lightning_parablock.SecureAggregation --strategy.aggregation.bytes_per_value 4",
            "bytes_per_value must be 1 or 2",
        ),
        ("--strategy.compression int9", "did you mean 'int8'?"),
        ("--strategy.compression lightning_parablock.Int4 --strategy.compression.group 100", "try 64"),
        ("--strategy.compression lightning_parablock.TopK --strategy.compression.keep 2", "keep must be in (0, 1]"),
        (
            "--strategy.compression lightning_parablock.Int4 --strategy.compression.groups 64",
            "did you mean --strategy.compression.group?",
        ),
        (
            "--strategy.server_optimizer lightning_parablock.ServerNesterov --strategy.server_optimizer.momentum 3",
            "momentum must be in [0, 1), got 3",
        ),
        ("--trainer.strategy.dict_kwargs.local_step 3", "unexpected keyword argument 'local_step'"),
        ("--strategy.local_steps 0", "local_steps must be a whole number >= 1"),
        ("--strategy.delay_steps -1", "delay_steps must be a whole number >= 0"),
        ("--strategy ddp --strategy.local_steps 8", "--strategy is 'ddp', which has no options"),
        ("--model.learnin_rate 3", "did you mean --model.learning_rate?"),
        ("--model.learning_rate fast", "--model.learning_rate must be a number, got 'fast'"),
        ("--model tests.support.cli_toys.Toi", "has no attribute 'Toi'"),
        ("--model Missing", "no class 'Missing' is known"),
        ("--data.sorce x", "did you mean --data.source?"),
        ("--trainer.max_step 3", "did you mean --trainer.max_steps?"),
        ("--trainer.max_steps many", "--trainer.max_steps must be a whole number"),
        ("--trainer.max_steps", "--trainer.max_steps needs a value"),
        ("--trainer.accelerator gpuu", "gpuu"),
        ("--local_steps 3", "did you mean --strategy.local_steps?"),
        ("--dry-rum", "did you mean --dry-run?"),
        ("--modl tests.support.cli_toys.Toy", "did you mean --model?"),
        ("word", "'word' is not an option"),
    ],
)
def test_wrong_options(capsys: pytest.CaptureFixture[str], words: str, named: str) -> None:
    assert named in complaint(capsys, ["fit", *TOYS, *words.split()])


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("trainer: {max_step: 3}", "'trainer.max_step' is not known; did you mean 'trainer.max_steps'?"),
        ("strategy: {local_step: 3}", "did you mean 'trainer.strategy.local_steps'?"),
        ("strategy: parablok", "broken.yaml: strategy 'parablok' is not known; did you mean 'parablock'?"),
        ("strategy: {topology: strar}", "did you mean 'star'?"),
        ("modle: {init_args: {x: 1}}", "did you mean 'model"),
        ("model: {init_args: {learnin_rate: 1}}", "did you mean 'model.learning_rate'?"),
        ("a: [1,", "broken.yaml: line 1: not valid YAML"),
    ],
)
def test_wrong_files(capsys: pytest.CaptureFixture[str], tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "broken.yaml"
    file.write_text(text)
    assert named in complaint(capsys, ["fit", *TOYS, "--config", str(file)])


def test_a_missing_file_names_its_neighbour(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "quickstart.yaml").touch()
    line = complaint(capsys, ["fit", "--config", str(tmp_path / "quikstart.yaml")])
    assert f"does not exist; did you mean '{tmp_path}/quickstart.yaml'?" in line


def test_a_misspelt_packaged_file_names_the_right_one(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, right in (("quikstart", "quickstart"), ("methods/fedbc.yaml", "methods/fedbcd")):
        assert f"did you mean {right!r}?" in complaint(capsys, ["fit", "--config", name])


@pytest.mark.parametrize(
    ("args", "named"),
    [(["fitt"], "did you mean 'fit'?"), ([], "no command was given; choose fit, validate, test, predict")],
)
def test_wrong_commands(capsys: pytest.CaptureFixture[str], args: list[str], named: str) -> None:
    assert named in complaint(capsys, args)


@pytest.mark.parametrize(
    ("word", "command"),
    [
        (word, command)
        for word in ("", "word", "--no_such_option")
        for command in sorted(COMMANDS)
        if word or command != "lighthouse"  # which needs no option, and then serves until it is told to end
    ],
)
def test_a_command_alone_or_with_one_word_that_it_cannot_use(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: str, word: str
) -> None:
    monkeypatch.chdir(tmp_path)
    if command == "init" and not word.startswith("--"):  # every option has a default, and the word is a folder
        assert main([command, *filter(None, [word])]) == 0
        assert (tmp_path / word / "run.yaml").is_file()
    else:
        complaint(capsys, [command, *filter(None, [word])])


def test_a_named_run_folder_is_not_used_twice(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "manifest.json").touch()
    assert "holds a run already" in complaint(capsys, ["fit", *TOYS, "--run_dir", str(tmp_path)])


def test_a_run_that_never_began_leaves_no_folder(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    complaint(capsys, ["fit", *TOYS, "--trainer.default_root_dir", str(tmp_path), "--trainer.accelerator", "gpuu"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("trainer.max_step", "trainer.max_steps"),
        ("trainr.max_steps", "trainer.max_steps"),
        ("blokcs", "strategy.blocks"),
    ],
)
def test_nearest_option(wrong: str, right: str) -> None:
    assert nearest_option(wrong, ["trainer.max_steps", "trainer.max_epochs", "strategy.blocks"]) == right


def test_no_option_is_near() -> None:
    assert nearest_option("zzz", ["trainer.max_steps"]) is None


def test_random_bytes_as_a_checkpoint(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    """These raise an IndexError inside the unpickler."""
    path = tmp_path / "random.ckpt"
    path.write_bytes(random.Random(2).randbytes(3000))
    said = complaint(capsys, ["fit", *TOYS, "--ckpt_path", str(path)])
    assert "random.ckpt cannot be read as a checkpoint" in said
