"""Fits of one site whose run is shared memory: what Lightning sees of an elastic run."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
)
from lightning_utilities.core.rank_zero import rank_zero_only

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.callbacks import RoundProgressBar
from lightning_parablock.elastic.journal import FILE_NAME, read_lines
from lightning_parablock.errors import ConfigurationError, CutOffError, DataError, DroppedError, PeerTimeoutError
from tests.elastic.fake_site import Board, FakeSite, enter
from tests.support.lightning_run import TaskModule, loader_of, patterns_of, trainer_for
from tests.tasks import adamw_default, mlp_task

TASK = mlp_task()
K, EPOCHS, BATCHES = 4, 2, 7


def strategy(**options: Any) -> ParaBlockStrategy:
    return ParaBlockStrategy(**{"local_steps": K, "blocks": patterns_of(TASK), "seed": 3, **options})


def elastic(**options: Any) -> ParaBlockStrategy:
    return strategy(**{"lighthouse": "hub:29510", "min_clients": 1, "site": "a", **options})


@pytest.fixture
def board(monkeypatch: pytest.MonkeyPatch) -> Board:
    """A run of one founder, which the strategies of this test enter."""
    made = Board({0: "a"})
    monkeypatch.setattr(
        "lightning_parablock.strategy.elastic_ranks.open_site", lambda settings, name, folder, links: FakeSite(made, 0)
    )
    return made


@contextmanager
def entered(board: Board) -> Generator[FakeSite]:
    """A site with a line in its journal, as which strategies take part until the end of the block."""
    site = FakeSite(board, 0)
    site.journal.note_opening(board.log, "run")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, site)
        yield site


class Noted(Callback):
    def __init__(self) -> None:
        self.seen: list[Any] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.seen.append((trainer.current_epoch, batch_idx, trainer.global_step, trainer.world_size))


def fit(used: ParaBlockStrategy, root: Path, **options: Any) -> tuple[Trainer, TaskModule]:
    module = options.pop("module", None) or TaskModule(TASK, adamw_default)
    train = options.pop("train", None) or loader_of(BATCHES, 0)
    trainer = trainer_for(used, **{"max_epochs": EPOCHS, "default_root_dir": str(root), **options})
    trainer.fit(module, train, loader_of(3, 0))
    return trainer, module


def test_a_single_site_trains_the_bits_of_a_fixed_membership(board: Board, tmp_path: Path) -> None:
    trainer, found = fit(elastic(), tmp_path, callbacks=[EarlyStopping("val_loss", patience=9)])
    _, plain = fit(strategy(), tmp_path)
    assert all(torch.equal(value, plain.weights()[name]) for name, value in found.weights().items())
    assert trainer.is_global_zero and rank_zero_only.rank == 0  # type: ignore[attr-defined]
    assert trainer.strategy.membership_log == board.log  # type: ignore[attr-defined]
    assert board.agreed and sorted(board.round_starts) == [0, 1, 2, 3]


def test_the_log_of_the_newest_fit_is_readable_until_the_next_one_begins(board: Board, tmp_path: Path) -> None:
    used = elastic()
    with entered(board) as site:
        trainer, module = fit(used, tmp_path, max_epochs=1)
    for _ in range(2):
        trainer.validate(module, loader_of(3, 0), verbose=False)
        assert used.membership_log == board.log and used.membership_lines == site.journal.lines

    def enters_nothing(*args: Any) -> Any:
        raise PeerTimeoutError("nobody has come")

    with pytest.MonkeyPatch.context() as patch, pytest.raises(PeerTimeoutError):
        patch.setattr("lightning_parablock.strategy.elastic_ranks.open_site", enters_nothing)
        trainer.fit(module, loader_of(BATCHES, 0))
    assert not used.membership_log.records and not used.membership_lines


def test_checkpoints_are_in_the_folder_of_the_site(board: Board, tmp_path: Path) -> None:
    saving = ModelCheckpoint(tmp_path / "kept", monitor="val_loss", save_last=True)
    fit(elastic(), tmp_path, callbacks=[saving], enable_checkpointing=True)
    assert {path.parent for path in tmp_path.rglob("*.ckpt")} == {tmp_path / "kept" / "a"}
    assert Path(saving.best_model_path).is_file()
    assert not [name for name in vars(saving) if name.startswith("on_")]


def test_a_site_whose_others_are_gone_at_the_end_is_told_that_they_may_have_gone_on_without_it(
    board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gather = FakeSite.gather

    def late(site: FakeSite, what: str, payload: bytes, round_index: int) -> dict[int, bytes]:
        if "changed_outside" in what and round_index == 3:
            raise PeerTimeoutError("no site has come")
        return gather(site, what, payload, round_index)

    monkeypatch.setattr(FakeSite, "gather", late)
    monkeypatch.setattr(ParaBlockStrategy, "is_alone", False)
    with pytest.raises(PeerTimeoutError, match=r"after the last of 4 rounds: .* may have ended with other weights"):
        fit(elastic(), tmp_path)


class Raises(Callback):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def on_train_batch_start(self, *args: Any) -> None:
        raise self.error


@pytest.mark.parametrize(("error", "runs_again"), [(DroppedError("gone"), ["gone"]), (CutOffError("alone"), [])])
def test_a_dropped_site_saves_nothing_and_runs_its_command_again_unless_it_is_cut_off(
    error: Exception, runs_again: list[str], board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    reasons: list[str] = []
    monkeypatch.setattr("lightning_parablock.strategy.elastic_ranks.run_again", reasons.append)
    with pytest.raises(type(error)):
        fit(elastic(), tmp_path, callbacks=[OnExceptionCheckpoint(tmp_path), Raises(error)], enable_checkpointing=True)
    assert reasons == runs_again
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_dropped_site_gives_its_model_back_with_all_parameters_to_train(board: Board, tmp_path: Path) -> None:
    module = TaskModule(TASK, adamw_default)
    trainer = trainer_for(elastic(), callbacks=[Raises(CutOffError("alone"))], default_root_dir=tmp_path)
    with pytest.raises(CutOffError):
        trainer.fit(module, loader_of(BATCHES, 0))
    assert all(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("error", [PeerTimeoutError("too few sites came"), KeyboardInterrupt()])
def test_a_site_that_does_not_get_in_is_there_for_no_other_one(
    error: BaseException, board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: object) -> None:
        raise error

    site = FakeSite(board, 0)
    enter(monkeypatch, site)
    monkeypatch.setattr(FakeSite, "enter", refused)
    with pytest.raises((PeerTimeoutError, SystemExit, KeyboardInterrupt)):
        fit(elastic(), tmp_path)
    assert site.is_closed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"site": None}, "needs site"),
        ({"rendezvous": "hub:1"}, "keep one of them"),
        ({"process_group_backend": "nccl"}, "has not been run with elastic membership"),
        ({"start_method": "fork"}, "start_method='fork' with elastic membership"),
        ({"clients": 2}, "clients=2 with elastic membership"),
        ({"clients": None, "cohort": 1}, "cohort=1 with elastic membership"),
        ({"block_order": "importance"}, "block_order='importance' with elastic membership"),
        ({"buffers": "average"}, "buffers='average' with elastic membership"),
        ({"local_steps": "auto"}, "local_steps='auto' with elastic membership"),
        ({"compression": "auto"}, "compression='auto' with elastic membership"),
    ],
)
def test_options_that_cannot_work_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        elastic(**options)


def test_trainers_that_cannot_work_are_refused_by_name(board: Board, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="reload_dataloaders_every_n_epochs"):
        fit(elastic(), tmp_path, reload_dataloaders_every_n_epochs=1)
    with pytest.raises(ConfigurationError, match="GradientAccumulationScheduler"):
        fit(elastic(), tmp_path, callbacks=[GradientAccumulationScheduler({0: 1, 2: 2})])
    with pytest.raises(ConfigurationError, match="must be 1, got 2 and 1"):
        trainer_for(elastic(), devices=2)
    with pytest.raises(DataError, match="the training loader has no length"):
        fit(elastic(), tmp_path, train=iter_of(BATCHES))
    with pytest.raises(
        ConfigurationError, match=r"2 training loaders, .* may have fewer batches of them; combine"
    ) as two:
        fit(elastic(), tmp_path, train=[loader_of(BATCHES, 0), loader_of(BATCHES, 1)])
    assert "uneven_clients" not in str(two.value)


class iter_of:
    def __init__(self, n_batches: int) -> None:
        self.n_batches = n_batches

    def __iter__(self) -> Any:
        return iter(loader_of(self.n_batches, 0))


def test_the_openings_are_noted_in_the_folder_of_the_site(board: Board, tmp_path: Path) -> None:
    used = elastic()
    with entered(board) as site:
        fit(used, tmp_path, max_epochs=1)
        fit(elastic(), tmp_path / "trial", fast_dev_run=1)
    assert [one.record for one in read_lines(tmp_path / "a" / FILE_NAME)] == list(board.log.records)
    assert used.membership_lines == site.journal.lines
    assert not (tmp_path / "trial").exists()


def test_without_torchft_the_option_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigurationError, match=r"pip install 'lightning-parablock\[elastic\]'"):
        elastic()
    strategy()


def test_bar_and_metrics_show_the_membership(board: Board, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    trainer, _ = fit(elastic(), tmp_path, callbacks=[RoundProgressBar(lines=True)], enable_progress_bar=True)
    assert "site a  sites 1/1 (a)  round 0" in capsys.readouterr().out
    members = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("membership/")}
    assert members == {"membership/members": 1.0, "membership/generation": 0.0}
    plain, _ = fit(strategy(), tmp_path, callbacks=[RoundProgressBar(lines=True)], enable_progress_bar=True)
    assert "sites" not in capsys.readouterr().out
    assert not [name for name in plain.callback_metrics if name.startswith("membership/")]
