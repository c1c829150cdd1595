"""Metrics of an epoch over all sites, where one has joined in its middle and has no batch left in it, or few."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor
from torch.utils.data import DataLoader
from torchmetrics import CatMetric, MeanMetric

from tests.elastic.fake_site import Board, FakeSite, elastic_strategy, enter
from tests.elastic.test_round_start import BATCHES, EPOCHS, K, Module
from tests.support.lightning_run import Steps, trainer_for


class Logs(Module):
    """Logs over the epoch and all sites, in every hook that a site which joins may not come to."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.largest = MeanMetric(), CatMetric()

    def on_train_start(self) -> None:
        self.log("begun", 1.0, sync_dist=True, reduce_fx="sum")

    def on_train_epoch_start(self) -> None:
        self.log("epoch", float(self.current_epoch), sync_dist=True)

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        seen = batch[1].float()
        if batch_idx == 0:
            self.log("first", seen.mean(), on_step=False, on_epoch=True, sync_dist=True)
        for name in ("mean", "min", "max", "sum"):
            self.log(f"seen_{name}", seen.mean(), on_step=False, on_epoch=True, sync_dist=True, reduce_fx=name)
        self.log("own", seen.mean(), on_step=False, on_epoch=True)
        self.mean(seen)
        self.log("metric", self.mean, on_step=False, on_epoch=True)
        self.largest(seen)
        return super().training_step(batch, batch_idx)

    def on_train_epoch_end(self) -> None:
        self.log("largest", self.largest.compute().max())
        self.largest.reset()


class Epochs(Callback):
    """The metrics at the end of each epoch."""

    def __init__(self) -> None:
        self.metrics: dict[int, dict[str, float]] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        dict(trainer.callback_metrics)  # reading them is no collective of this site's own

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.metrics[trainer.current_epoch] = {name: float(value) for name, value in trainer.callback_metrics.items()}


class Recorder(FakeSite):
    """Keeps what it has sent, of collectives after the set-up."""

    def __init__(self, *args: Any, **more: Any) -> None:
        super().__init__(*args, **more)
        self.sent: list[tuple[str, int, bytes]] = []

    def gather(self, what: str, payload: bytes, round_index: int) -> dict[int, bytes]:
        self.sent.append((what, round_index, payload))
        return super().gather(what, payload, round_index)


class Beside(FakeSite):
    """Exchanges with no site, and its metrics are over a site that has been recorded, too."""

    def __init__(self, board: Board, client: int, other: list[tuple[str, int, bytes]]) -> None:
        super().__init__(board, client, is_founder=False)
        self.other = iter(other)

    def present(self, round_index: int) -> tuple[int, ...]:
        return (0, self.client)

    def gather(self, what: str, payload: bytes, round_index: int) -> dict[int, bytes]:
        theirs, at, sent = next(self.other)
        assert (what, round_index) == (theirs, at)
        return {0: sent, self.client: payload} if what.startswith(("reduce", "gather of")) else {self.client: payload}


def fit(root: Path, batches: int, **options: Any) -> Epochs:
    epochs = Epochs()
    strategy = elastic_strategy(local_steps=K)
    callbacks = [epochs, *options.pop("callbacks", [])]
    ckpt_path = options.pop("ckpt_path", None)
    chosen = {"max_epochs": EPOCHS, "default_root_dir": str(root), **options}
    trainer = trainer_for(strategy, callbacks=callbacks, **chosen)
    trainer.fit(Logs(), DataLoader(Steps(2 * batches, 0), batch_size=2), ckpt_path=ckpt_path)
    return epochs


OWN_BATCHES = 2
FOUNDERS = {round_index: round_index * K // BATCHES for round_index in range(1, EPOCHS * BATCHES // K)}
"""The epoch in which each round begins."""


@pytest.mark.parametrize("first", FOUNDERS)
def test_a_joiner_comes_to_the_collectives_of_the_others_and_adds_nothing_where_it_has_no_batch(
    first: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    board = Board({0: "a"})
    donor = Recorder(board, 0)
    enter(monkeypatch, donor)
    theirs = fit(tmp_path, BATCHES)
    board.names[1] = "b"
    board.regroup((1,), first, (1,))
    board.admitted_at = first
    joiner = Beside(board, 1, [one for one in donor.sent if one[1] >= first])
    enter(monkeypatch, joiner)
    epochs = fit(tmp_path, OWN_BATCHES)
    assert next(joiner.other, None) is None
    epoch, batch = FOUNDERS[first], first * K % BATCHES
    if batch >= OWN_BATCHES:
        assert over_all(epochs.metrics[epoch]) == over_all(theirs.metrics[epoch])
        assert epochs.metrics[epoch]["own"] == 3.5 if epoch == 0 else theirs.metrics[epoch - 1]["own"]


def over_all(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name.startswith(("seen", "metric", "first", "epoch"))}


def test_a_run_that_continues_within_an_epoch_has_no_metric_that_no_site_logs_any_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    saving = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=6)
    fit(tmp_path, BATCHES, callbacks=[saving], enable_checkpointing=True, max_epochs=1)
    enter(monkeypatch, FakeSite(Board({0: "a"}), 0))
    found = fit(tmp_path, BATCHES, ckpt_path=saving.best_model_path).metrics
    seen = [(2 * batch + 0.5) for batch in range(BATCHES)]
    assert over_all(found[0]) == {
        "seen_mean": sum(seen[K:]) / len(seen[K:]),
        "seen_min": seen[K],
        "seen_max": seen[-1],
        "seen_sum": sum(seen[K:]),
        "metric": sum(seen[K:]) / len(seen[K:]),
    }
    assert found[0]["begun"] == 1.0
    assert (found[1]["first"], found[1]["epoch"], found[1]["seen_sum"]) == (seen[0], 1.0, sum(seen))
