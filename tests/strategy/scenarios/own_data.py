"""One rank of the fits that test_own_data.py starts: two sites with data of their own, through the Trainer."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.errors import DataError
from lightning_parablock.models import CausalLM
from lightning_parablock.strategy.parablock import ParaBlockStrategy
from tests.strategy.scenarios.sight import mean_alone
from tests.strategy.scenarios.toys import BATCHES, N_RANKS, RANK, TASK, batches, on_all, oracle, run, strategy
from tests.support.here import SCRATCH
from tests.support.lightning_run import Steps, TaskModule, trainer_for
from tests.tasks import adamw_default, assert_same_bits
from tests.unit.tiny_text import byte_tokenizer, save_tiny_llama, write_jsonl

SITE = SCRATCH / f"site{RANK}"
ROWS = (20, 26)


def mine(n_rows: int | None = None, letter: str | None = None) -> str:
    """This site's ``mine.jsonl``."""
    letter, n_rows = letter or "ab"[RANK], ROWS[RANK] if n_rows is None else n_rows
    return str(write_jsonl(SITE / "mine.jsonl", ({"q": f"{letter}{i}", "a": f"{i}"} for i in range(n_rows))))


def text(**options: Any) -> FederatedTextDataModule:
    data = FederatedTextDataModule(
        mine(), prompt_field="q", answer_field="a", sequence_length=8, val_fraction=0.2, batch_size=2, **options
    )
    data.tokenizer = byte_tokenizer()  # type: ignore[assignment]
    return data


def fit_text(data: FederatedTextDataModule) -> Any:
    used = ParaBlockStrategy(local_steps=2, blocks=2, seed=3, exchange_timeout_s=60)
    trainer = trainer_for(used, devices=N_RANKS, use_distributed_sampler=True)
    torch.manual_seed(0)
    trainer.fit(CausalLM(str(SITE / "llama"), learning_rate=0.02), datamodule=data)
    return trainer


def all_rows_are_used_and_validated() -> None:
    """Every row of both sites is in a training batch or in the validation, whose loss is over those of both."""
    for partition in ("auto", "own"):
        data = text(partition=partition)
        trainer = fit_text(data)
        facts = on_all((data.describe()["rows"], len(data.train_set), len(data.val_set)))
        assert facts == [
            (["client 0: 20 of 20 rows: 16 to train on, 4 held out"], 16, 4),
            (
                ["client 1: 26 of 26 rows: 21 to train on, 5 held out; left out: "
                 "1 example of each epoch, too few for a batch"], 21, 5
            ),
        ]  # fmt: skip
        (found,) = trainer.validate(trainer.lightning_module, datamodule=data, verbose=False)
        of_ranks = on_all([{name: tensor.tolist() for name, tensor in one.items()} for one in data.val_set])  # type: ignore[attr-defined]
        union = [{name: torch.tensor(value) for name, value in one.items()} for rows in of_ranks for one in rows]
        assert len(union) == 9
        assert found["val_loss"] == pytest.approx(mean_alone(trainer.lightning_module.eval(), union), rel=1e-5)


def a_bad_site_is_named_on_both() -> None:
    """The file of one site is missing: both ranks end before training, and none waits."""
    data = text()
    if RANK == 1:
        (SITE / "mine.jsonl").unlink()
    with pytest.raises(
        DataError,
        match=r"client 1 \(rank 1 on .*\) ended on an error of its own: DataError: .*mine.jsonl does not exist",
    ):
        fit_text(data)


def loaders_of_ones_own_are_accounted_for() -> None:
    """Sets that differ are used whole, and each client says so."""
    used = strategy(uneven_clients="go_on")
    run(train=batches(BATCHES), used=used, use_distributed_sampler=True)
    assert used.rows_shown == [f"client {RANK}: {BATCHES} of {BATCHES} rows"]
    used = strategy()
    same = DataLoader(Steps(2 * BATCHES, 0))
    module = run(train=same, val=DataLoader(Steps(2, 0)), used=used, use_distributed_sampler=True)
    assert used.rows_shown == [f"client {RANK}: {BATCHES} of {2 * BATCHES} rows"]
    assert all(torch.isfinite(value).all() for value in module.weights().values())
    assert_same_bits(run().weights(), oracle())


class Noting(BasePredictionWriter):
    """Keeps the indices and values that it is to write."""

    def __init__(self) -> None:
        super().__init__("batch")
        self.seen: list[tuple[int, float]] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, batch_indices: Any, *_: Any) -> None:
        self.seen += zip(batch_indices, prediction.tolist(), strict=True)


class Doubling(TaskModule):
    def predict_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        return 2 * batch[0]


def a_writer_gets_each_row_once() -> None:
    rows = DataLoader(TensorDataset(torch.arange(11.0)), batch_size=2)
    for shared in (True, False):
        writer = Noting()
        trainer = trainer_for(strategy(), devices=N_RANKS, use_distributed_sampler=shared, callbacks=[writer])
        trainer.predict(Doubling(TASK, adamw_default), rows)
        seen = on_all(writer.seen)
        together = sorted(entry for one in seen for entry in one)
        assert together == [(i, 2.0 * i) for i in range(11) for _ in range(1 if shared else N_RANKS)]


SCENARIOS = {
    "all rows are used and validated": all_rows_are_used_and_validated,
    "loaders of one's own": loaders_of_ones_own_are_accounted_for,
    "a writer gets each row once": a_writer_gets_each_row_once,
    "a bad site is named on both": a_bad_site_is_named_on_both,
}


def prepare() -> None:
    """A folder of this site, with a model."""
    SITE.mkdir(exist_ok=True)
    save_tiny_llama(SITE / "llama")
