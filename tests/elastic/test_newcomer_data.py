"""Data of a site that comes to a run whose founders have agreed on theirs."""

from __future__ import annotations

from typing import Any

import pytest
from lightning.pytorch.trainer.states import RunningStage

from lightning_parablock.data.sharing import refuse_shared
from lightning_parablock.errors import DataError
from lightning_parablock.loading.lengths import Epoch, agree_on_length
from lightning_parablock.loading.shards import Cutting, cut_or_keep, dataset_fingerprint
from tests.support.lightning_run import loader_of


def newcomer(loader: Any, others: Any) -> Cutting:
    prints = [dataset_fingerprint(others), dataset_fingerprint(others), dataset_fingerprint(loader)]
    return Cutting(2, 0, lambda own: prints, has_shard=False)


def test_data_of_its_own_stay_whole() -> None:
    loader = loader_of(4, client=7)
    kept, what = cut_or_keep(loader, RunningStage.TRAINING, newcomer(loader, loader_of(4, client=0)))
    assert kept is loader and what == "each client keeps its own data set: it differs from all others"


def test_data_that_the_others_have_cut_are_refused_for_training_alone() -> None:
    loader = loader_of(4, client=0)
    cutting = newcomer(loader, loader_of(4, client=0))
    with pytest.raises(DataError, match="has the training set of clients 0, 1, which they have cut into shards"):
        cut_or_keep(loader, RunningStage.TRAINING, cutting)
    assert cut_or_keep(loader, RunningStage.VALIDATING, cutting)[0] is loader


def test_rows_that_the_others_have_cut_are_refused() -> None:
    refuse_shared((3,), (3,))
    with pytest.raises(DataError, match="its rows are those of clients 0, 1"):
        refuse_shared((0, 1, 3), (3,))


@pytest.mark.parametrize(("own", "goes_on"), [(9, True), (9, False), (3, True), (3, False)])
def test_an_epoch_has_as_many_batches_as_the_founders_agreed(own: int, goes_on: bool) -> None:
    epoch = Epoch("train", 4, lambda length: [5, 6, length], goes_on, settled=lambda n_batches: 6 if goes_on else 5)
    loader, _ = agree_on_length(loader_of(own, 0), epoch)
    batches, idles = [], []
    for batch in loader:
        batches.append(int(batch[1]))
        idles.append(loader.idles())
    agreed = 6 if goes_on else 5
    assert len(loader) == len(batches) == agreed
    assert batches == [min(step, own - 1) for step in range(agreed)]
    assert idles == [step >= own for step in range(agreed)]
