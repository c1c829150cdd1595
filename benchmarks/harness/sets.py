"""The two data sets of the quality benchmarks as data module options: GSM8K, and an instruction set from files."""

from __future__ import annotations

import argparse
import os
from typing import Any

from benchmarks.harness import gsm8k

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


def sources(options: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Options of FederatedTextDataModule for the location and the columns of each available set.

    Args:
        options: Parsed options of :func:`add_options`.
    """
    found = {"gsm8k": gsm8k.data_options(options.train_file, options.test_file)}
    if "instruct" not in missing(options):
        found["instruct"] = {
            "source": options.instruct_train_file,
            "val_source": options.instruct_test_file,
            "prompt_field": "instruction",
            "answer_field": "output",
            "template": "{instruction}\nAnswer: ",
        }
    return found
