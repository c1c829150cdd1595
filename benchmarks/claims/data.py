"""The data of bench_claims: GSM8K with a label per question, and an instruction set, as data module options."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from benchmarks.claims.methods import ALPHA, BATCH_SIZE, Run, Size
from benchmarks.harness import gsm8k, sets
from lightning_parablock.data.rows import text_of
from lightning_parablock.data.sources import Source, load_rows

MOST_STEPS = 8
"""Questions with more calculations than this share one label."""


def sources(options: argparse.Namespace, scratch: Path) -> dict[str, dict[str, Any]]:
    """Data module options for the location and the columns of each set.

    Args:
        options: Parsed options of :func:`benchmarks.harness.sets.add_options`.
        scratch: Folder for the labelled copy of GSM8K.
    """
    found = sets.sources(options)
    labelled = {
        "source": str(_labelled(options.train_file, "train", scratch)),
        "val_source": str(_labelled(options.test_file, "test", scratch)),
        "config_name": None,
        "label_field": "label",
    }
    found["gsm8k"] |= labelled
    if "instruct" in found:
        found["instruct"]["label_field"] = "task"
    return found


def module_options(run: Run, size: Size, source: dict[str, Any]) -> dict[str, Any]:
    """Options of FederatedTextDataModule; each client visits its own examples in its own order."""
    return source | {
        "partition": run.partition,
        "alpha": ALPHA,
        "val_examples": size.val_examples * sets.VAL_SHARE[run.data],
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
