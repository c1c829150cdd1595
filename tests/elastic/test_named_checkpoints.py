"""``ckpt_path="last"``, ``"best"`` and ``"hpc"`` at sites that come and go: the same command works at each of them."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.launching.checkpoint_choice import Choice
from lightning_parablock.strategy.elastic_resume import ShareOfCheckpoint
from lightning_parablock.strategy.elastic_run import ElasticRun
from tests.elastic.fake_site import Board, FakeSite, enter, together
from tests.elastic.test_elastic_checkpoints import SETTINGS, Gatherers, held
from tests.elastic.test_elastic_group import Ranks
from tests.elastic.test_round_start import Module, fit


def keeping(folder: Path | None) -> ModelCheckpoint:
    return ModelCheckpoint(folder, every_n_train_steps=5, save_last=True)


@pytest.mark.parametrize("name", ["last", "best", "hpc", "registry:model", "nowhere.ckpt"])
def test_a_guest_needs_no_checkpoint(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    board = Board({0: "a"})
    enter(monkeypatch, FakeSite(board, 0))
    donor = fit(tmp_path / "donor", Module())
    board.admitted_at = 3
    board.slots.clear()
    enter(monkeypatch, FakeSite(board, 0, is_founder=False))
    saving = keeping(tmp_path / "kept")
    joiner = fit(tmp_path, Module(), ckpt_path=name, callbacks=[saving], enable_checkpointing=True)
    assert [event[:4] for event in joiner.events[2:]] == [event[:4] for event in donor.events[donor.round_starts[3] :]]


@pytest.mark.parametrize(
    ("name", "why"), [("best", "is not configured to save the best"), ("hpc", "no HPC checkpoint")]
)
def test_founders_of_which_none_finds_one_are_refused(
    name: str, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    with pytest.raises(ConfigurationError, match=f"no founder has the checkpoint .*: site a: .*{why}"):
        fit(tmp_path, Module(), ckpt_path=name, callbacks=[keeping(tmp_path)], enable_checkpointing=True)


def found_by(choices: list[Choice], files: list[Any]) -> list[Any]:
    """What each founder loads, or with which message it is refused."""
    board = Board(dict(enumerate("ab")))
    runs = [ElasticRun.enter(Ranks(), FakeSite(board, i), {}, None) for i in range(2)]  # type: ignore[arg-type]

    def agree(index: int) -> Any:
        run = runs[index]
        try:
            shared = ShareOfCheckpoint.agreed(Gatherers(run), run, choices[index], files[index], SETTINGS)
        except ConfigurationError as error:
            return str(error)
        return shared and shared.load(run, files[index])[1].round

    return together([partial(agree, index) for index in range(2)])


def test_a_founder_that_finds_none_gets_that_of_another_one() -> None:
    choices = [Choice(None, True, "none is the best"), Choice("kept.ckpt", True)]
    assert found_by(choices, [None, held(4, 1.0)]) == [4, 4]


def test_founders_that_find_none_are_refused_together() -> None:
    first, second = found_by([Choice(None, True, "none is the best"), Choice(None)], [None, None])
    assert first == second
    assert "no founder has the checkpoint that was to be continued: site a: none is the best; correct" in first


def test_without_a_last_checkpoint_a_run_begins() -> None:
    assert found_by([Choice(None, True), Choice(None)], [None, None]) == [None, None]


@pytest.mark.parametrize("folder", ["kept", None])
def test_the_last_checkpoint_is_that_of_the_site(
    folder: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int | None] = []
    for epochs in (1, 2):
        site = FakeSite(Board({0: "a"}), 0)
        enter(monkeypatch, site)
        saving = keeping(None if folder is None else tmp_path / folder)
        fit(tmp_path, Module(), callbacks=[saving], enable_checkpointing=True, max_epochs=epochs, ckpt_path="last")
        begun.append(None if site.checkpoint is None else site.checkpoint.round)
        assert saving.dirpath == str(tmp_path / (folder or "checkpoints") / "a")
    assert begun == [None, 1]
