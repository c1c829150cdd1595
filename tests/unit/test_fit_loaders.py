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


class Fit:
    """One rank that hosts one client, in epoch 0."""

    def __init__(self) -> None:
        progress = SimpleNamespace(current=SimpleNamespace(processed=0))
        self.loop = SimpleNamespace(epoch_progress=progress, _data_fetcher=None, _combined_loader=None)
        rules = LoaderRules(Settings, HostedClients((0,), 0, 7, lambda value: [value]), n_ranks=1, cuts=True)
        trainer: Any = SimpleNamespace(fit_loop=self.loop)
        self.loaders = FitLoaders(trainer, rules, lambda: None)  # type: ignore[arg-type, return-value]

    def set_up(self, *n_batches: int) -> list[Any]:
        """As Lightning does: it keeps the loaders once all of them have been processed."""
        made = [self.loaders.process(data(n), RunningStage.TRAINING) for n in n_batches]
        self.loop._combined_loader = SimpleNamespace(flattened=made)
        return made


def data(n_batches: int) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.arange(n_batches)))


def test_loaders_that_are_made_anew_replace_the_others_whether_these_were_iterated_or_not() -> None:
    fit = Fit()
    assert (fit.loaders.n_training, fit.loaders.positions()) == (0, [])
    first = fit.set_up(3, 4)
    fit.loaders.process(data(5), RunningStage.VALIDATING)
    assert fit.loaders.n_training == 2
    assert fit.loaders.positions() == [None, None]
    next(iter(first[1]))
    assert [None if p is None else p["batches"] for p in fit.loaders.positions()] == [None, 1]
    fit.set_up(6)  # as with reload_dataloaders_every_n_epochs
    fit.set_up(6)  # as with estimated_stepping_batches before
    assert fit.loaders.n_training == 1
    assert fit.loaders.positions() == [None]


def test_each_loader_resumes_at_its_own_position_once() -> None:
    passed: dict[int, Position] = {1: {"epoch": 0, "cycle": 0, "batches": 2, "stream": None}}
    fit = Fit()
    fit.set_up(4, 4)
    fit.loaders.resume_at(passed)
    first, second = fit.set_up(4, 4)
    assert fit.loaders.positions() == [None, passed[1]]  # also before the first batch
    values = [[int(batch[0]) for batch in loader] for loader in (first, second)]
    assert values == [[0, 1, 2, 3], [2, 3]]
    assert [int(batch[0]) for batch in second] == [0, 1, 2, 3]
    assert passed.keys() == {1}


def test_rows_are_accounted_for_once() -> None:
    fit = Fit()
    for _ in range(2):
        fit.set_up(3)
    assert fit.loaders.rows_shown == ["client 0: 3 of 3 rows"]
