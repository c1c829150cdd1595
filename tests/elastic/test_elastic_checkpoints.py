"""Checkpoints of an elastic run: saved by each site alone, continued by any set of sites."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.partition import Block
from lightning_parablock.checkpointing.elastic_checkpoints import KEY, ElasticEntry, with_entry
from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.launching.checkpoint_choice import Choice
from lightning_parablock.strategy.elastic_group import PIECE_BYTES
from lightning_parablock.strategy.elastic_resume import HeldFile, ShareOfCheckpoint, held_checkpoint
from lightning_parablock.strategy.elastic_run import ElasticRun
from tests.elastic.fake_site import Board, FakeSite, enter, together
from tests.elastic.test_elastic_group import Ranks
from tests.elastic.test_round_start import K, Module, Told, fit


def saving(folder: Path, every: int) -> ModelCheckpoint:
    return ModelCheckpoint(folder / "kept", every_n_train_steps=every, save_top_k=-1)


def saved(folder: Path) -> dict[int, Path]:
    found = list((folder / "kept" / "a").glob("*.ckpt"))
    return {int(path.stem.rpartition("=")[2]): path for path in found if "step=" in path.stem}


def test_a_run_continues_from_the_beginning_of_the_round_in_which_it_was_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    first = Module()
    before = fit(tmp_path, first, callbacks=[saving(tmp_path, 5)], enable_checkpointing=True)
    files = saved(tmp_path)
    assert sorted(files) == [5, 10, 15, 20, 25]
    for step, path in files.items():
        round_index = (step - 1) // K  # between two rounds the trainers have not begun the later one
        site = FakeSite(Board({0: "a"}, first_round=round_index), 0)
        enter(monkeypatch, site)
        second = Module()
        nn.init.zeros_(second.layers[0].weight)  # type: ignore[arg-type]
        after = fit(tmp_path / "later", second, ckpt_path=str(path))
        assert site.checkpoint is not None and site.checkpoint.round == round_index
        assert site.checkpoint.log.records == Board({0: "a"}).log.records
        if step % K == 0:
            continue
        assert without_sanity(after) == before.events[before.round_starts[round_index] :]
        assert all(torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True))


def without_sanity(told: Told) -> list[Any]:
    return told.events[2:] if told.events[0][0] == "validation" else told.events


def test_a_guest_takes_no_notice_of_a_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({0: "a"})
    enter(monkeypatch, FakeSite(board, 0))
    donors = Module()
    donor = fit(tmp_path, donors, callbacks=[saving(tmp_path, 5)], enable_checkpointing=True)
    board.admitted_at = 3
    board.slots.clear()
    enter(monkeypatch, FakeSite(board, 0, is_founder=False))
    joiners = Module()
    joiners.load_state_dict(donor.weights[3], strict=False)
    joiner = fit(tmp_path, joiners, ckpt_path=str(saved(tmp_path)[25]))
    assert without_sanity(joiner) == donor.events[donor.round_starts[3] :]
    assert all(torch.equal(a, b) for a, b in zip(donors.parameters(), joiners.parameters(), strict=True))


def test_a_checkpoint_says_from_which_runs_its_run_descends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    files: list[str] = []
    for index, run in enumerate(("first", "second", "third")):
        board = Board({0: "a"}, first_round=2 if index else 0)
        for is_founder in (True, False):
            site = FakeSite(board, 0, is_founder=is_founder)
            site.run_id = run
            enter(monkeypatch, site)
            folder = tmp_path / f"{run} {is_founder}"
            path = None if not files else files[-1] if is_founder else files[0]  # a guest's file may be of any run
            fit(folder, Module(), callbacks=[saving(folder, 11)], enable_checkpointing=True, ckpt_path=path)
            assert ("site a is let into the run; it gets the model from a member" in caplog.text) == (not is_founder)
            caplog.clear()
            file = saved(folder)[11]
            entry = ElasticEntry.of(torch.load(file, weights_only=True), str(file))
            assert (entry.run, entry.ancestors) == (run, ("first", "second", "third")[:index])
            if is_founder:
                assert (site.checkpoint.lineage if site.checkpoint else ()) == ("first", "second")[:index]
                files.append(str(file))
                board.admitted_at = 2
                board.slots.clear()


class Fails(Callback):
    def on_train_batch_end(self, trainer: Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.global_step == 6:
            raise RuntimeError("as wanted")


def test_a_run_continues_from_what_a_failing_site_has_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    with pytest.raises(RuntimeError, match="as wanted"):
        fit(tmp_path, Module(), callbacks=[Fails()])
    path = tmp_path / "rescued-a.ckpt"
    ends = f"site a ends in round 1; the last committed model is in {path}; the others may continue without it"
    assert ends in caplog.text and "the run ends" not in caplog.text
    site = FakeSite(Board({0: "a"}, first_round=1), 0)
    enter(monkeypatch, site)
    fit(tmp_path, Module(), ckpt_path=str(path), max_epochs=2)
    assert site.checkpoint is not None and site.checkpoint.round == 1


def test_what_is_no_checkpoint_of_an_elastic_run_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    fit(tmp_path, Module(), callbacks=[saving(tmp_path, 5)], enable_checkpointing=True)
    final, newest = tmp_path / "kept" / "a" / "final.ckpt", saved(tmp_path)[25]
    with pytest.raises(ConfigurationError, match="was not saved by a run with elastic membership"):
        fit(tmp_path, Module(), ckpt_path=str(final))
    checkpoint = torch.load(newest, weights_only=True)
    for change, message in (
        (lambda: checkpoint[KEY].update(format=99), "in format 99 of elastic checkpoints, this version reads 1"),
        (lambda: checkpoint[KEY].update(format=1, weights_sha256="0"), "are damaged"),
    ):
        change()
        torch.save(checkpoint, tmp_path / "other.ckpt")
        with pytest.raises(CheckpointError, match=message):
            fit(tmp_path, Module(), ckpt_path=str(tmp_path / "other.ckpt"))


def test_other_blocks_are_refused() -> None:
    entry = entry_of(3)
    entry.refuse_other_blocks([Block("all", ("w",), 4)])
    with pytest.raises(CheckpointError, match=r"saved with the blocks all \(4\), this run has other \(4\)"):
        entry.refuse_other_blocks([Block("other", ("w",), 4)])


SETTINGS = {"seed": "3"}


def entry_of(
    round_index: int, run: str = "run", settings: dict[str, str] = SETTINGS, ancestors: tuple[str, ...] = ()
) -> ElasticEntry:
    log, start = Board({0: "a"}).log, f"start of {round_index}".encode()
    return ElasticEntry(round_index, start, run, "a", log, settings, (("all", 4),), ancestors=ancestors)


def held(round_index: int, value: float, scalars: int = 4, **other: Any) -> HeldFile:
    saved = {"state_dict": {"w": torch.full((scalars,), value)}, "epoch": 0, "global_step": 1}
    checkpoint = with_entry({**saved, "pytorch-lightning_version": "2.6.0"}, entry_of(round_index, **other))
    return HeldFile(checkpoint, ElasticEntry.of(checkpoint, "here"))


def test_a_file_from_before_ancestors_were_recorded_has_none() -> None:
    checkpoint = held(3, 1.0, ancestors=("old",)).checkpoint
    assert ElasticEntry.of(checkpoint, "here").ancestors == ("old",)
    del checkpoint[KEY]["ancestors"]
    assert ElasticEntry.of(checkpoint, "here").ancestors == ()


def descendant(round_index: int, value: float) -> HeldFile:
    return held(round_index, value, run="young", ancestors=("older", "old"))


class Gatherers(Ranks):
    def __init__(self, run: ElasticRun) -> None:
        self.run = run

    def gather_objects(self, value: Any) -> list[Any]:
        return self.run.group.gather_objects(value, "here")


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        pytest.param([None, held(2, 1.0), held(4, 2.0)], (4, 2.0), id="the newest"),
        pytest.param([held(4, 1.0), held(4, 2.0), None], (4, 1.0), id="of two the first"),
        pytest.param([held(4, 1.0)] * 3, (4, 1.0), id="all have it"),
        pytest.param([None, held(1, 5.0, PIECE_BYTES // 4 + 7), None], (1, 5.0), id="in pieces"),
        pytest.param([None, None, None], None, id="none"),
        pytest.param([held(9, 1.0, run="old"), descendant(2, 2.0), None], (2, 2.0), id="a descendant's"),
        pytest.param(
            [descendant(2, 1.0), held(9, 2.0, run="older"), descendant(4, 3.0)], (4, 3.0), id="a descendant's newest"
        ),
    ],
)
def test_founders_take_the_newest_that_any_of_them_has(files: list[HeldFile | None], expected: Any) -> None:
    board = Board({0: "a", 1: "b", 2: "c"})
    runs = [ElasticRun.enter(Ranks(), FakeSite(board, i), {}, None) for i in range(3)]  # type: ignore[arg-type]

    def load(index: int) -> Any:
        run = runs[index]
        path = "kept.ckpt" if any(files) else None
        shared = ShareOfCheckpoint.agreed(Gatherers(run), run, Choice(path), files[index], SETTINGS)
        if shared is None:
            return None
        checkpoint, entry = shared.load(run, files[index])
        return entry.round, float(checkpoint["state_dict"]["w"][-1]), entry.trainer_state

    wanted = None if expected is None else (*expected, f"start of {expected[0]}".encode())
    assert together([partial(load, index) for index in range(3)]) == [wanted] * 3
    assert len(runs[0].group.agreed.results) == 1, "what is handed out is not for guests"


@pytest.mark.parametrize(
    ("files", "message"),
    [
        pytest.param(
            [None, None], "no founder has .*: site a names a.ckpt; site b names b.ckpt; correct", id="nowhere"
        ),
        pytest.param(
            [held(900, 1.0, run="old"), held(40, 1.0)],
            "different runs: site a has a.ckpt, run old, round 900; site b has b.ckpt, run run, round 40",
            id="another run",
        ),
        pytest.param(
            [held(3, 1.0, run="one", ancestors=("old",)), held(5, 1.0, run="two", ancestors=("old",))],
            "different runs: site a has a.ckpt, run one, round 3; site b has b.ckpt, run two, round 5",
            id="two that continued the same run",
        ),
        pytest.param(
            [None, held(2, 1.0, settings={"seed": "3", "local_steps": "4"})],
            "b.ckpt at site b was saved with local_steps=4, this run has 8",
            id="other settings",
        ),
    ],
)
def test_files_that_do_not_say_from_where_to_continue_are_refused(files: list[HeldFile | None], message: str) -> None:
    board = Board({0: "a", 1: "b"})
    runs = [ElasticRun.enter(Ranks(), FakeSite(board, i), {}, None) for i in range(2)]  # type: ignore[arg-type]

    def agree(index: int) -> None:
        run, settings = runs[index], {**SETTINGS, "local_steps": "8", "min_clients": "1"}
        with pytest.raises(ConfigurationError, match=message):
            ShareOfCheckpoint.agreed(Gatherers(run), run, Choice(f"{'ab'[index]}.ckpt"), files[index], settings)

    together([partial(agree, index) for index in range(2)])


def test_a_file_that_is_elsewhere_is_no_error(tmp_path: Path) -> None:
    io = ParaBlockStrategy().checkpoint_io
    assert held_checkpoint(io, None) is None
    assert held_checkpoint(io, str(tmp_path / "not here.ckpt")) is None
