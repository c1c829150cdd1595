"""A checkpoint measured on test rows, and GSM8K's exact match."""

from __future__ import annotations

import json
import math
import re
from decimal import Decimal
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch

from lightning_parablock.cli import main
from lightning_parablock.models import CausalLM
from lightning_parablock.models.exact_match import ExactMatch, final_number
from tests.unit.tiny_text import save_tiny_llama, write_jsonl

ROWS = [{"question": f"{n}+1?", "answer": f"so #### {n + 1}"} for n in range(4)]


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("#### 18", "18"),
        ("x\n####18.", "18"),
        ("#### 1,234", "1234"),
        ("#### $70,000.50 a year", "70000.5"),
        ("#### -3", "-3"),
        ("#### .5", "0.5"),
        ("#### 5 #### 6", "5"),
        ("18", None),
        ("#### none", None),
        ("### 18", None),
    ],
)
def test_the_final_number(text: str, number: str | None) -> None:
    assert final_number(text) == (None if number is None else Decimal(number))


def test_matches_are_counted_by_value() -> None:
    metric = ExactMatch()
    for completion, answer in (
        ("#### 18.0", "#### 18"),
        ("#### 81", "#### 18"),
        ("18", "#### 18"),
        ("#### 2", "#### 2"),
    ):
        metric.update(completion, answer)
    assert metric.compute() == 0.5
    with pytest.raises(ValueError, match="no number after ####"):
        metric.update("#### 1", "one")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    trainer = pl.Trainer(logger=False, accelerator="cpu", devices=1, enable_model_summary=False)
    trainer.strategy.connect(CausalLM(str(save_tiny_llama(folder / "llama"))))
    trainer.save_checkpoint(folder / "last.ckpt")
    return folder / "last.ckpt"


def evaluate(checkpoint: Path, tmp_path: Path, rows: list[Any], *words: str) -> dict[str, Any]:
    source, output = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "figures.json"
    args = ["--ckpt_path", checkpoint, "--data.source", source, "--output", output, "--data.format", "gsm8k"]
    assert main(["evaluate", *map(str, args), "--accelerator", "cpu", "--data.sequence_length", "48", *words]) == 0
    return json.loads(output.read_text())


def test_all_rows_are_measured(checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = evaluate(checkpoint, tmp_path, ROWS, "--predict_tokens", "4")
    assert figures["examples"] == 4
    assert figures["test_perplexity"] == pytest.approx(math.exp(figures["test_loss"]), rel=1e-4)
    assert figures["exact_match"] == 0.0  # random weights write no ####
    said = capsys.readouterr().out
    assert re.search(r"^exact_match: 0\.0000$", said, re.M) and re.search(r"^examples: 4$", said, re.M)


def test_a_model_that_knows_the_answers_matches(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    def complete(self: CausalLM, prompt: torch.Tensor) -> dict[str, str]:
        asked.append(self.tokenizer.decode(prompt))
        number = int(asked[-1].removeprefix("Question: ").split("+")[0]) + 1
        return {"prompt": asked[-1], "completion": f"it is #### {number if number != 2 else 7}"}

    monkeypatch.setattr(CausalLM, "_complete", complete)
    rows = [*ROWS, {"question": "9+1?", "answer": "so 10"}]
    figures = evaluate(checkpoint, tmp_path, rows)
    assert asked == [f"Question: {row['question']}\nAnswer: " for row in rows]
    assert (figures["exact_match"], figures["examples_without_a_number"]) == (0.75, 1)


def test_other_formats_have_no_exact_match(checkpoint: Path, tmp_path: Path) -> None:
    rows = [{"instruction": "Do", "output": "done"}] * 2
    figures = evaluate(checkpoint, tmp_path, rows, "--data.format", "alpaca", "--data.val_examples", "1")
    assert set(figures) == {"examples", "examples_cut", "test_loss", "test_perplexity"}


def test_answers_that_do_not_fit_are_compared_whole(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CausalLM, "_complete", lambda self, prompt: {"prompt": "", "completion": "#### 1250"})
    rows = [{"question": "1?", "answer": "a long way " * 5 + "#### 1250"}, {"question": "1?", "answer": "#### 1"}]
    figures = evaluate(checkpoint, tmp_path, rows)
    assert (figures["exact_match"], figures["examples_without_a_number"], figures["examples_cut"]) == (0.5, 0, 1)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--ckpt_path", "nowhere.ckpt"], "checkpoint nowhere.ckpt does not exist"),
        (["--output", "nowhere/x.json"], "the folder of output nowhere/x.json does not exist"),
        (["--data.source", "nowhere.jsonl"], "nowhere.jsonl"),
        (["--data.formt", "gsm8k"], "did you mean --data.format?"),
        (["--data.sequence_length", "12"], "1 of 1 questions are too long for data.sequence_length=12"),
    ],
)
def test_what_cannot_be_measured(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], says: str
) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"question": "1+1?", "answer": "a long way to #### 2"}])
    args = ["--ckpt_path", str(checkpoint), "--data.source", str(source), "--data.format", "gsm8k"]
    try:
        code = main(["evaluate", *args, "--accelerator", "cpu", "--predict_tokens", "2", *words])
    except SystemExit as end:  # what the parser itself refuses
        code = end.code
    assert code == 2
    assert says in capsys.readouterr().err
