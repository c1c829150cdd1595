"""What a validation step returns or logs becomes a client's loss and the labels' losses."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_parablock.callbacks import ClientSight
from lightning_parablock.callbacks.sight_losses import Losses
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.loading.shards import ShardSampler


class Rows(Dataset[int]):
    """Sample i is i; every third one is odd in another way."""

    def __init__(self, n: int, names: list[str] | None) -> None:
        self.n = n
        if names is not None:
            self.label_names, self.row_labels = names, [i % len(names) for i in range(n)]

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> int:
        return index


def loader(n: int = 5, names: list[str] | None = None, **options: Any) -> DataLoader[int]:
    return DataLoader(Rows(n, names), batch_size=2, **options)


def losses(*loaders: Any) -> Losses:
    trainer: Any = SimpleNamespace(val_dataloaders=list(loaders), _results={})
    return Losses(trainer, "val_loss")


def validate(*loaders: DataLoader[int]) -> Losses:
    """The loss of sample i is 10 i, over i + 1 terms."""
    found = losses(*loaders)
    for number, one in enumerate(loaders):
        for index, batch in enumerate(one):
            found.add({"loss_sums": 10.0 * batch, "loss_counts": batch + 1}, batch, index, number)
    return found


def test_labels_come_from_the_first_loader_and_own_rows_from_the_last() -> None:
    found = validate(loader(5, ["a", "b", "c"]), loader(3))
    assert found.of_labels() == {"a": (30.0, 5.0), "b": (50.0, 7.0), "c": (20.0, 3.0)}
    assert found.own() == 30 / 6


def test_rows_of_nobody_known_are_the_one_clients_own_and_of_several_nobodys() -> None:
    found = validate(loader(3))
    assert found.own_of([4]) == {4: 30 / 6}
    assert found.own_of([4, 5]) == {4: None}


def test_a_shard_keeps_its_labels_and_is_nobodys_own() -> None:
    shard = loader(5, ["a", "b"], sampler=ShardSampler([1, 2, 4], shuffle=False, seed=0))
    found = validate(shard)
    assert found.of_labels() == {"a": (60.0, 8.0), "b": (10.0, 2.0)}
    assert found.own() is None


@pytest.mark.parametrize(
    "one",
    [loader(5), loader(5, ["a", "b"], shuffle=True), loader(200, [f"label {i}" for i in range(100)])],
    ids=["no labels", "shuffled", "too many"],
)
def test_no_figures_by_label_where_they_would_be_wrong(one: DataLoader[int]) -> None:
    torch.manual_seed(0)
    found = validate(one)
    assert found.of_labels() == {}
    assert found.own() is not None


@pytest.mark.parametrize("wrap", [lambda loss: loss, lambda loss: {"loss": loss, "more": 1}])
def test_a_batch_mean_counts_its_samples(wrap: Any) -> None:
    found = losses(loader(3, ["a", "b"]))
    found.add(wrap(torch.tensor(1.0)), torch.zeros(2), 0, 0)
    found.add(wrap(torch.tensor(4.0)), torch.zeros(1), 1, 0)
    assert found.own() == 2.0
    assert found.of_labels() == {}


def test_without_a_returned_loss_the_logged_mean_counts() -> None:
    def item(name: str, value: Any, index: int | None, *, mean: bool = True) -> Any:
        meta = SimpleNamespace(name=name, dataloader_idx=index, is_mean_reduction=mean)
        counted = {"value": torch.tensor(value), "cumulated_batch_size": torch.tensor(4)}
        return SimpleNamespace(meta=meta, is_tensor=True, has_reset=False, **counted)

    found = losses(loader(), loader())
    results = {"a": item("val_loss", 8.0, 0), "b": item("val_loss", 12.0, 1), "c": item("other", 0.0, 1)}
    found._trainer._results = results  # type: ignore[misc]
    assert found.own() == 3.0
    found._trainer._results = {"a": item("val_loss", 8.0, None, mean=False)}  # type: ignore[misc]
    assert found.own() is None


def test_a_mistyped_choice_names_the_right_one() -> None:
    with pytest.raises(ConfigurationError, match=r"shared='agregates' is not known; .*aggregates"):
        ClientSight("agregates")  # type: ignore[arg-type]
