"""The data of bench_claims: GSM8K with a label per question, and an instruction set, as data module options."""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

from benchmarks.claims.methods import ALPHA, BATCH_SIZE, Run, Size
from benchmarks.harness import gsm8k
from lightning_parablock.data.rows import text_of
from lightning_parablock.data.sources import Source, load_rows

MOST_STEPS = 8
"""Questions with more calculations than this share one label."""
REPORTED_LOSS = {"gsm8k": "token", "instruct": "example"}
"""Mean over all answer tokens, or mean over examples of each example's mean. The instruction set's answers have a
median of two tokens, so a few long ones would dominate the mean over tokens."""
VAL_SHARE = {"gsm8k": 1, "instruct": 3}
"""Factor for the size's number of held-out examples: answers of two tokens need more of them for equal precision."""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options for both sets' files; defaults come from INSTRUCT_TRAIN, INSTRUCT_TEST and GSM8K's variables."""
    gsm8k.add_options(parser)
    for name in ("train", "test"):
        where = os.environ.get(f"INSTRUCT_{name.upper()}", "")
        parser.add_argument(
            f"--instruct-{name}-file", default=where, help=f"instruction set, {name} rows: JSON Lines file"
        )


def missing(options: argparse.Namespace) -> dict[str, str]:
    """Unavailable data sets, each with what to do about it."""
    if options.instruct_train_file and options.instruct_test_file:
        return {}
    return {"instruct": "name its files with --instruct-train-file and --instruct-test-file"}


def sources(options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    """Data module options for the location and the columns of each set.

    Args:
        options: Parsed options of :func:`add_options`.
        scratch: Folder for the labelled copy of GSM8K.
    """
    found: dict[str, dict[str, Any]] = {
        "gsm8k": {
            "source": str(_labelled(options.train_file, "train", scratch)),
            "val_source": str(_labelled(options.test_file, "test", scratch)),
            **gsm8k.COLUMNS,
            "label_field": "label",
        }
    }
    if "instruct" not in missing(options):
        found["instruct"] = {
            "source": options.instruct_train_file,
            "val_source": options.instruct_test_file,
            "prompt_field": "instruction",
            "answer_field": "output",
            "template": "{instruction}\nAnswer: ",
            "label_field": "task",
        }
    return found


def module_options(run: Run, size: Size, source: dict[str, Any]) -> dict[str, Any]:
    """Options of FederatedTextDataModule; each client visits its own examples in its own order."""
    return source | {
        "partition": run.partition,
        "alpha": ALPHA,
        "val_examples": size.val_examples * VAL_SHARE[run.data],
        "sequence_length": size.sequence_length,
        "batch_size": BATCH_SIZE,
        "seed": run.seed,
    }


def calculation_steps(answer: str) -> str:
    """The label of a question: the number of calculations in its answer, each marked by ``<<``."""
    return str(min(answer.count("<<"), MOST_STEPS))


def _labelled(source: str, split: str, scratch: Path) -> Path:
    path = scratch / f"gsm8k_{split}.jsonl"
    rows = load_rows(Source(source, gsm8k.config_name(source), split))
    with path.open("w") as file:
        for row in rows:
            file.write(json.dumps({**row.values, "label": calculation_steps(text_of(row, "answer"))}) + "\n")
    return path
