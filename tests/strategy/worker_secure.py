"""One site of the fits that test_secure.py starts: worker_secure.py FOLDER, with identities and the roster in it."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping
from torch.utils.data import DataLoader
from torchmetrics import MeanMetric

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.settings import SecureAggregation
from tests.support.here import N_RANKS, RANK
from tests.support.lightning_run import Steps, TaskModule, expected_weights, fit, patterns_of, trainer_for
from tests.tasks import adamw_default, assert_same_bits, transformer_task

TASK, K, STEPS, SEED = transformer_task(), 4, 18, 3
FOLDER, SITE = Path(sys.argv[1]), "abc"[RANK]


class SaveAt(Callback):
    """Saves in the middle of a round, with exchanges in flight."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: Trainer, *_: Any, **__: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def strategy(**options: Any) -> ParaBlockStrategy:
    chosen = {"local_steps": K, "blocks": patterns_of(TASK), "seed": SEED, "exchange_timeout_s": 60}
    secure = {"aggregation": "secure", "site": SITE, "federation": str(FOLDER / "federation.yaml")}
    return ParaBlockStrategy(**(chosen | secure | {"keys": str(FOLDER / SITE)} | options))  # type: ignore[arg-type]


def shuffled_fit(used: ParaBlockStrategy, data: int = 0, **trainer_options: Any) -> TaskModule:
    """``data``: how many samples more than usual; from 10 on, those of another site."""
    module = TaskModule(TASK, adamw_default)
    path = trainer_options.pop("ckpt_path", None)
    loader = DataLoader(
        Steps(STEPS + data % 10, RANK + data // 10), batch_size=trainer_options.pop("batch_size", 1), shuffle=True
    )
    trainer_for(used, devices=N_RANKS, **trainer_options).fit(module, loader, ckpt_path=path)
    return module


def refused(needle: str, **options: Any) -> None:
    used, data = options.pop("strategy", {}), options.pop("data", 0)
    try:
        shuffled_fit(strategy(**used), data, **options)
    except ParaBlockError as error:
        assert needle in str(error), error
    else:
        raise AssertionError(f"nothing was refused, expected: {needle}")


def refused_by_one(needle: str, own_local_steps: int | None = None, **options: Any) -> None:
    """Site b alone has other options; the others name it and its reason, and do not take it for lost."""
    is_it = SITE == "b"
    used = {"delay_steps": 6, "own_local_steps": own_local_steps if is_it else None}
    data = options.pop("data", 0)
    try:
        shuffled_fit(strategy(**used), data if is_it else 0, **options)
    except ParaBlockError as error:
        assert needle in str(error), error
        assert is_it or (isinstance(error, ConfigurationError) and "site b" in str(error)), error
    else:
        raise AssertionError(f"nothing was refused, expected: {needle}")


class Figures(TaskModule):
    """Logs a figure of each site: its rank plus one, the count of its steps, and the mean that torchmetrics makes."""

    gathers = False

    def __init__(self) -> None:
        super().__init__(TASK, adamw_default)
        self.mean, self.seen = MeanMetric(), list[float]()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.mean.update(RANK + 1)
        self.log("own", float(RANK + 1), sync_dist=True)
        self.log("sum", 1.0, sync_dist=True, reduce_fx="sum")
        self.log("mean", self.mean)
        if self.gathers:
            self.all_gather(torch.ones(1))

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Steps(2 + RANK, RANK))


def figures_stay_at_their_sites() -> None:
    """What is logged is each site's own, also where sites validate on different numbers of batches."""
    # Site c does not improve, so that all stop after its second validation.
    stopping = EarlyStopping("own", patience=1 if SITE == "c" else 99, mode="min", verbose=True)
    trainer, module = trainer_for(strategy(), devices=N_RANKS, callbacks=[stopping], max_epochs=9), Figures()
    loader = DataLoader(Steps(STEPS, RANK), shuffle=True)
    trainer.fit(module, loader)
    logged = {name: float(trainer.callback_metrics[name]) for name in ("own", "sum", "mean")}
    assert logged == {"own": RANK + 1, "sum": 2 + RANK, "mean": RANK + 1}, logged
    assert trainer.current_epoch == 2, trainer.current_epoch
    module.mean.reset()  # and computed with the process group that is still open
    module.mean.update(RANK + 1)
    assert module.mean.compute() == RANK + 1
    module.register_buffer("rows", torch.tensor([RANK]))  # what BatchNorm, for example, has seen of the site's rows
    found = trainer.validate(module, verbose=False)
    assert found == [{"own": RANK + 1, "sum": 2 + RANK, "mean": RANK + 1}], found
    assert module.get_buffer("rows").tolist() == [RANK]
    plain = ParaBlockStrategy(site=SITE, federation=str(FOLDER / "federation.yaml"), keys=str(FOLDER / SITE))
    found = trainer_for(plain, devices=N_RANKS).validate(module, verbose=False)
    of_all = torch.tensor([float(rank + 1) for rank in range(N_RANKS) for _ in range(2 + rank)])
    assert found[0]["mean"] == float(of_all.sum() / len(of_all)), found


def main() -> None:
    """A new site's first fit equals the oracle; a second one draws other batches; a resumed one repeats its bits."""
    torch.set_num_threads(1)
    # This machine has no WireGuard interface: who is who comes from the roster, links do not.
    mock.patch("lightning_parablock.strategy.ranks.private_links", return_value=None).start()
    used = strategy()
    module = fit(TASK, used, RANK, STEPS, devices=N_RANKS)
    whole_rounds = STEPS - STEPS % K  # a resumed run would repeat a short one as a whole
    expected = expected_weights(TASK, used.settings, n_clients=N_RANKS, total_steps=whole_rounds)
    assert_same_bits(module.weights(), expected)
    print("FIRST EQUAL")
    path = FOLDER / "saved.ckpt"
    whole = shuffled_fit(strategy(delay_steps=6), callbacks=[SaveAt(10, path)])
    shuffled_fit(strategy(delay_steps=6), max_steps=1)  # started by mistake
    for changes in ({}, {"topology": "star", "chunk_bytes": 4096, "straggler_timeout_s": 700.0}):
        again = shuffled_fit(strategy(delay_steps=6, **changes), ckpt_path=path)
        assert_same_bits(again.weights(), whole.weights())
    print("RESUMED EQUAL")
    other = shuffled_fit(strategy(delay_steps=6, aggregation=SecureAggregation(2)))
    weights = whole.weights()
    assert any(not torch.equal(value, weights[name]) for name, value in other.weights().items())
    refused("training data are not those", ckpt_path=path, data=1, strategy={"delay_steps": 6})
    refused("training data are not those", ckpt_path=path, batch_size=2, strategy={"delay_steps": 6})
    refused("uneven_clients='go_on' with aggregation='secure' is not supported", data=SITE == "b")
    refused("the checkpoint was saved with", ckpt_path=path, strategy={"delay_steps": 6, "own_local_steps": 2})
    refused("saved with gradient_clip_val None", ckpt_path=path, gradient_clip_val=0.5, strategy={"delay_steps": 6})
    refused_by_one("the checkpoint was saved with", ckpt_path=path, own_local_steps=2)
    refused_by_one("training data are not those", ckpt_path=path, data=10)
    record = FOLDER / "b" / "submissions.json"
    whole_record = record.read_text()
    if SITE == "b":
        record.write_text("{")
    refused_by_one("the record of contributions")
    if SITE == "b":
        record.write_text(whole_record)
    figures_stay_at_their_sites()
    Figures.gathers = True
    try:
        trainer_for(strategy(), devices=N_RANKS).fit(Figures(), DataLoader(Steps(STEPS, RANK), shuffle=True))
    except ConfigurationError as error:
        assert "self.all_gather with aggregation='secure'" in str(error), error
        print("DONE")


if __name__ == "__main__":
    main()
