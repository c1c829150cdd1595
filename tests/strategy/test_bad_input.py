"""Bad input by the command line on two ranks: one clear line on every rank, no training, an exit code that is not 0."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.launch import run_ranks
from tests.unit.tiny_text import save_tiny_llama, write_jsonl

MODEL = ["--model.model", "FOLDER/llama"]
DATA = ["--data.source", "FOLDER/rows.jsonl"]
REST = ["--data.sequence_length", "8", "--trainer.accelerator", "cpu", "--trainer.max_steps", "2"]


@dataclass(frozen=True)
class Case:
    """A command line and what it must say.

    Attributes:
        words: Options after the ones that all cases share, FOLDER being the input's folder; the last one given counts.
        said: Regular expression that the one line of the error matches.
        only_on: Rank that has these words; None gives them to both.
        said_by_other: What the other rank says, where it is something else.
    """

    words: list[str]
    said: str
    only_on: int | None = None
    said_by_other: str | None = None

    def arguments(self, rank: int) -> list[str]:
        """The command line on one rank."""
        own = self.words if self.only_on in (None, rank) else []
        return [*MODEL, *DATA, *REST, *own]

    def expected(self, rank: int) -> str:
        """What this rank must say."""
        other = self.said_by_other if self.only_on not in (None, rank) else None
        return other or self.said


CASES = {
    "wrong option": Case(
        ["--strategy.local_step", "4"], r"local_step is not known; did you mean --strategy\.local_steps"
    ),
    "wrong value": Case(["--strategy.block_order", "shufle"], r"'shufle'.*did you mean 'shuffle'"),
    "wrong type": Case(
        ["--strategy.local_steps", "four"], r"--strategy\.local_steps must be 'auto' or a whole number, got 'four'"
    ),
    "wrong strategy": Case(["--strategy", "parablok"], r"did you mean 'parablock'"),
    "no match": Case(["--strategy.blocks", '["nowhere"]'], "pattern 'nowhere' of blocks matches no parameter"),
    "overlap": Case(["--strategy.blocks", '["layers", "mlp"]'], r"'layers' and 'mlp' of blocks both match '.*mlp"),
    "no local steps": Case(["--strategy.local_steps", "0"], "local_steps must be a whole number >= 1 .* got 0"),
    "negative delay": Case(["--strategy.delay_steps", "-1"], "delay_steps must be .* got -1"),
    "missing file": Case(["--data.source", "FOLDER/rosw.jsonl"], r"rosw\.jsonl does not exist; did you mean .*rows"),
    "missing file at one client": Case(
        ["--data.source", "FOLDER/rosw.jsonl"],
        r"rosw\.jsonl does not exist; did you mean .*rows\.jsonl",
        only_on=1,
        said_by_other=r"client 1 \(rank 1 on .*\) ended on an error of its own: DataError: .*rosw\.jsonl does not",
    ),
    "broken line at one client": Case(
        ["--data.source", "FOLDER/broken.jsonl"],
        r"broken\.jsonl, line 2: ",
        only_on=1,
        said_by_other=r"client 1 \(rank 1 on .*\) ended on an error of its own: DataError: .*broken\.jsonl, line 2: ",
    ),
    "empty shard": Case(
        ["--data.source", '["FOLDER/rows.jsonl", "FOLDER/short.jsonl"]', "--data.partition", "files"],
        "empty shard: client 1 of 2 has 1 rows, which give 0 examples of 8 tokens",
    ),
    "broken line": Case(["--data.source", "FOLDER/broken.jsonl"], r"broken\.jsonl, line 2: "),
    "no label column": Case(
        ["--data.partition", "label", "--data.label_field", "tsak"],
        "no label column 'tsak'; columns there are: text, task; did you mean 'task'",
    ),
    "more clients than samples": Case(
        ["--data.source", "FOLDER/short.jsonl", "--data.val_fraction", "0"],
        "more clients than samples: 2 clients, 1 training rows",
    ),
    "no GGUF": Case(["--model.model", "FOLDER/empty"], "empty holds neither a config.json nor a GGUF file"),
    "no GGUF either": Case(["--model.model", "FOLDER/rows.jsonl"], r"rows\.jsonl is no GGUF file"),
    "no checkpoint": Case(["--ckpt_path", "FOLDER/rows.jsonl"], r"rows\.jsonl cannot be read as a checkpoint"),
    "missing checkpoint": Case(["--ckpt_path", "FOLDER/none.ckpt"], r"none\.ckpt .*not"),
    "configurations": Case(
        ["--strategy.local_steps", "5"],
        r"local_steps differs between clients: client 0 .* has 16; client 1 .* has 5",
        only_on=1,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bad-input")
    save_tiny_llama(folder / "llama")
    (folder / "empty").mkdir()
    write_jsonl(folder / "rows.jsonl", [{"text": f"some words, number {i}", "task": str(i % 2)} for i in range(32)])
    write_jsonl(folder / "short.jsonl", [{"text": "abc", "task": "0"}])
    (folder / "broken.jsonl").write_text('{"text": "fine"}\n{"text": "not\n')
    return folder


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_clear_line_on_every_rank(folder: Path, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    common = ["-m", "lightning_parablock", "fit", "--trainer.default_root_dir", str(tmp_path)]

    def own_arguments(rank: int) -> list[str]:
        return [word.replace("FOLDER", str(folder)) for word in case.arguments(rank)]

    outputs = run_ranks(2, common, expect_code=None, own_arguments=own_arguments)
    for rank, output in enumerate(outputs):
        errors = [line for line in output.splitlines() if line.startswith("error: ")]
        assert len(errors) == 1, output
        assert re.search(case.expected(rank), errors[0]), output
        assert "Traceback" not in output
        assert "round 1" not in output
