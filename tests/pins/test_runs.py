"""Runs end in the bits, and leave the files, that they did."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pins import runs
from tests.pins.stored import CHECKPOINT, as_json, stored


@pytest.mark.parametrize("preset", runs.PRESETS)
def test_the_bits_of_a_preset(tmp_path: Path, preset: str) -> None:
    assert runs.preset_bits(preset, tmp_path) == stored("bits")["presets"][preset]


def test_the_stored_bits_differ() -> None:
    """Each preset is a method of its own, which the runs are long enough to show."""
    presets = stored("bits")["presets"]
    assert len(set(presets.values())) == len(presets) == len(runs.PRESETS)


def test_a_checkpoint_has_the_same_files_and_keys(tmp_path: Path) -> None:
    saved, bits = runs.saving_run(tmp_path)
    assert bits == stored("bits")["rich run"]
    assert as_json(runs.layout_of(saved)) == stored("checkpoint")


def test_a_checkpoint_of_format_3_resumes_to_the_bits_of_the_whole_run(tmp_path: Path) -> None:
    """Saved at step 22 of the run in ``runs.saving_run``, by the version before its folders were cut into rooms."""
    assert runs.rich_run(tmp_path, ckpt_path=CHECKPOINT) == stored("bits")["rich run"]
