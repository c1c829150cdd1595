"""A data set without rows: the message names the client and the data, whatever PyTorch says of its sampler."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import DataError
from tests.support.cli_toys import Toy
from tests.support.lightning_run import trainer_for


def rows(n: int, *, shuffle: bool) -> DataLoader[Any]:
    return DataLoader(TensorDataset(torch.zeros(n, 8)), batch_size=2, shuffle=shuffle)


class Emptied(Toy):
    """Its loaders are made when Lightning asks for them."""

    def __init__(self, n_train: int, n_other: int) -> None:
        super().__init__()
        self.n_train, self.n_other = n_train, n_other

    def train_dataloader(self) -> DataLoader[Any]:
        return rows(self.n_train, shuffle=True)

    def val_dataloader(self) -> DataLoader[Any]:
        return rows(self.n_other, shuffle=True)

    test_dataloader = predict_dataloader = val_dataloader


@pytest.mark.parametrize(
    ("command", "n_train", "stage"),
    [
        ("fit", 0, "train"),
        ("fit", 4, "sanity_check"),
        ("validate", 4, "validate"),
        ("test", 4, "test"),
        ("predict", 4, "predict"),
    ],
)
def test_no_rows_under_shuffle_are_named(tmp_path: Path, command: str, n_train: int, stage: str) -> None:
    strategy = ParaBlockStrategy(blocks=2, local_steps=2)
    trainer = trainer_for(strategy, default_root_dir=tmp_path, num_sanity_val_steps=1 if n_train else 0)
    module = Emptied(n_train, 0)
    with pytest.raises(DataError, match=rf"the {stage} data of client 0 have 0 rows, in a loader that shuffles"):
        getattr(trainer, command)(module)


def test_another_error_of_a_loader_stays(tmp_path: Path) -> None:
    class Broken(Emptied):
        def train_dataloader(self) -> DataLoader[Any]:
            return DataLoader(TensorDataset(torch.zeros(4, 8)), batch_size=-1)

    trainer = trainer_for(ParaBlockStrategy(blocks=2, local_steps=2), default_root_dir=tmp_path, num_sanity_val_steps=0)
    with pytest.raises(ValueError, match="batch_size should be a positive integer"):
        trainer.fit(Broken(4, 4))
