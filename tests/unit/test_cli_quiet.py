"""Lightning's repeated warnings and advertisements are left out of the command line, and of nothing else."""

from __future__ import annotations

import logging
import subprocess
import sys
import warnings
from pathlib import Path

import lightning.pytorch
import pytest

from lightning_parablock.cli import entry

LIGHTNING = Path(lightning.pytorch.__file__).parent
UNWANTED = [
    "`isinstance(treespec, LeafSpec)` is deprecated, use `isinstance(treespec, TreeSpec) and treespec.is_leaf()`",
    "The dirpath has changed from 'a' to 'b', therefore `best_model_score` won't be reloaded.",
    "Checkpoint directory /runs/now/checkpoints exists and is not empty.",
]


def test_repeated_warnings_are_left_out_and_others_are_not() -> None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.resetwarnings()
        entry._hush()
        for message in [*UNWANTED, "The number of training batches (16) is smaller than the logging interval"]:
            warnings.warn(message, stacklevel=1)
    assert [str(warning.message)[:20] for warning in caught] == ["The number of traini"]


def test_lightning_still_words_them_so() -> None:
    source = (LIGHTNING / "callbacks" / "model_checkpoint.py").read_text()
    assert "The dirpath has changed from" in source
    assert "Checkpoint directory {dirpath} exists and is not empty" in source


def test_tips_are_left_out() -> None:
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    entry._hush()
    record = log.makeRecord(log.name, logging.INFO, "", 0, "💡 Tip: For seamless cloud logging, install", (), None)
    assert not log.filter(record)
    assert log.filter(log.makeRecord(log.name, logging.INFO, "", 0, "GPU available", (), None))


@pytest.mark.parametrize("program", ["import lightning_parablock", "import lightning_parablock.cli"])
def test_an_import_filters_nothing(program: str) -> None:
    code = f"import warnings; before = list(warnings.filters); {program}; print(warnings.filters == before)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "True"
