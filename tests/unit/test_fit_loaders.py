"""The loaders of a fit: one list per pass over the user's loaders, with a place in each."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, TensorDataset

from lightning_parablock.loading.clients_data import HostedClients
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.loading.positioned import Position
from lightning_parablock.settings import Settings


def loaders(passed: dict[int, Position] | None = None) -> FitLoaders:
    """Of one rank that hosts one client, in epoch 0."""
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    trainer: Any = SimpleNamespace(fit_loop=SimpleNamespace(epoch_progress=progress, _data_fetcher=None))
    rules = LoaderRules(Settings(), HostedClients((0,), 0, 7, lambda value: [value]), n_ranks=1, cuts=True)
    return FitLoaders(trainer, rules, lambda: None, passed or {})  # type: ignore[arg-type, return-value]


def data(n_batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(n_batches)))


def test_loaders_made_before_the_first_batch_are_one_list_and_later_ones_a_new_one() -> None:
    made = loaders()
    first = [made.process(data(n), RunningStage.TRAINING) for n in (3, 4)]
    made.process(data(5), RunningStage.VALIDATING)
    assert made.n_training == 2
    assert made.positions() == [None, None]
    next(iter(first[1]))  # type: ignore[call-overload]
    assert [None if p is None else p["batches"] for p in made.positions()] == [None, 1]
    made.process(data(6), RunningStage.TRAINING)  # as with reload_dataloaders_every_n_epochs
    assert made.n_training == 1
    assert made.positions() == [None]


def test_each_loader_resumes_at_its_own_position_once() -> None:
    passed = {1: {"epoch": 0, "cycle": 0, "batches": 2, "stream": None}}
    made = loaders(passed)
    first, second = (made.process(data(4), RunningStage.TRAINING) for _ in range(2))
    assert made.positions() == [None, passed[1]]  # also before the first batch
    values = [[int(batch[0]) for batch in loader] for loader in (first, second)]  # type: ignore[attr-defined]
    assert values == [[0, 1, 2, 3], [2, 3]]
    assert [int(batch[0]) for batch in second] == [0, 1, 2, 3]  # type: ignore[attr-defined]
    assert passed.keys() == {1}


def test_rows_are_accounted_for_once() -> None:
    made = loaders()
    for _ in range(2):
        made.process(data(3), RunningStage.TRAINING)
    assert made.rows_shown == ["client 0: 3 of 3 rows"]
