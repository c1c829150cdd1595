"""Named sites, for real: their numbers follow their names, with and without a launcher, also when a run is resumed."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.strategy.test_launches import FIT, FROM_LAUNCHERS, assert_same_bits
from tests.support.launch import free_port, rank_environment, run_ranks

SAVE = ["--trainer.callbacks", "ModelCheckpoint", "--trainer.callbacks.every_n_train_steps", "7"]
KEEP = ["--trainer.callbacks.save_top_k", "-1", "--trainer.callbacks.dirpath"]
FIT_HERE = [*FIT, "--trainer.accelerator", "cpu", "--validate_before_and_after", "false"]


def run_sites(names: Sequence[str], folder: Path, *args: str, launched: bool = True, expect_code: int = 0) -> list[str]:
    """Fit with one process per site, which a launcher has numbered in this order, or which no launcher has started."""

    def environment(rank: int, n_ranks: int, port: int) -> dict[str, str]:
        found = rank_environment(rank, n_ranks, port)
        if launched:
            return found
        return {
            name: value for name, value in found.items() if name not in (*FROM_LAUNCHERS, "MASTER_ADDR", "MASTER_PORT")
        }

    def own(rank: int) -> list[str]:
        return ["--site", names[rank], "--run_dir", str(folder / "run")]

    saves = [*SAVE, *KEEP, str(folder / "ckpt")]
    return run_ranks(
        len(names),
        ["-m", "lightning_parablock", *FIT_HERE, *saves, *args],
        own_arguments=own,
        environment_of=environment,
        expect_code=expect_code,
    )


def weights_at(folder: Path, step: int) -> dict[str, Tensor]:
    (saved,) = (folder / "ckpt").glob(f"*step={step}.ckpt")
    return torch.load(saved, weights_only=True)["state_dict"]


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fourteen steps of sites a and b, numbered by a launcher in the order of their names."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    run_sites("ab", folder, "--trainer.max_steps", "14")
    return folder


def test_a_resumed_run_whose_launcher_swaps_the_ranks_has_the_same_bits(tmp_path: Path, uninterrupted: Path) -> None:
    run_sites("ba", tmp_path, "--trainer.max_steps", "7")
    (saved,) = (tmp_path / "ckpt").glob("*step=7.ckpt")
    assert_same_bits(weights_at(tmp_path, 7), weights_at(uninterrupted, 7))
    again = tmp_path / "again"
    run_sites("ab", again, "--trainer.max_steps", "14", "--ckpt_path", str(saved))
    assert_same_bits(weights_at(again, 14), weights_at(uninterrupted, 14))
    for site, at in (("a", "run"), ("b", "run")):
        manifest = json.loads((tmp_path / at / site / "manifest.json").read_text())
        assert manifest["state"] == "finished", site


def test_another_site_does_not_go_on_with_the_state_of_one_that_is_gone(tmp_path: Path, uninterrupted: Path) -> None:
    (saved,) = (uninterrupted / "ckpt").glob("*step=7.ckpt")
    outputs = run_sites("ac", tmp_path, "--trainer.max_steps", "14", "--ckpt_path", str(saved), expect_code=1)
    for output in outputs:
        assert "was saved by the sites a, b, and this run has the sites a, c" in output, output


def test_without_a_launcher_the_sites_meet_by_themselves(tmp_path: Path, uninterrupted: Path) -> None:
    rendezvous = ["--strategy.rendezvous", f"127.0.0.1:{free_port()}", "--trainer.num_nodes", "2"]
    run_sites("ba", tmp_path, "--trainer.max_steps", "14", *rendezvous, launched=False)
    assert_same_bits(weights_at(tmp_path, 14), weights_at(uninterrupted, 14))
    assert sorted(os.listdir(tmp_path / "run")) == ["a", "b"]
