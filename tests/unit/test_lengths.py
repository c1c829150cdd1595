"""How many batches an epoch has where the clients' data differ: the loaders by themselves, without ranks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lightning_parablock.errors import DataError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.loading.lengths import Epoch, agree_on_length


class Stream(IterableDataset[int]):
    def __init__(self, n: int) -> None:
        self.n = n

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.n))


class Lying(Stream):
    def __len__(self) -> int:
        return self.n + 2


def loader(data: Any, **options: Any) -> DataLoader[Any]:
    return DataLoader(data, batch_size=None, **options)


def epoch(*others: Any, stage: str = "train", window: int = 4) -> Epoch:
    """The other client answers with these values in turn."""
    answers = iter(others)
    gather: Callable[[Any], Sequence[Any]] = lambda own: [own, next(answers)]  # noqa: E731
    return Epoch(stage, window, gather)


def test_the_shortest_length_counts() -> None:
    data = TensorDataset(torch.arange(9))
    cut, lengths = agree_on_length(DataLoader(data), epoch(6))
    assert lengths == [9, 6]
    assert len(cut) == len(list(cut)) == len(list(cut)) == 6
    assert cut.dataset is data


def test_evaluation_uses_all_of_its_data() -> None:
    given = DataLoader(TensorDataset(torch.arange(9)))
    assert agree_on_length(given, epoch(6, stage="validate")) == (given, [9, 6])


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_a_length_that_not_all_have_is_hidden(stage: str) -> None:
    cut, lengths = agree_on_length(DataLoader(TensorDataset(torch.arange(9))), epoch(None, stage=stage))
    assert lengths == [9, None]
    with pytest.raises(TypeError, match=r"has no len\(\)"):
        len(cut)


@pytest.mark.parametrize(
    ("own", "others", "yielded"),
    [
        (9, [4, 4, 4], 9),  # the other one still has a full window: this client ends
        (9, [4, 2], 6),
        (8, [4, 4, 4], 8),
        (9, [4, 0], 4),
        (3, [4], 3),
    ],
)
def test_a_stream_ends_with_the_first_that_ends(own: int, others: list[int], yielded: int) -> None:
    cut, _ = agree_on_length(loader(Stream(own)), epoch(None, *others))
    assert list(cut) == list(range(yielded))


def test_a_streams_state_is_not_offered_because_it_runs_ahead() -> None:
    class Stateful(Stream):
        def state_dict(self) -> dict[str, int]:
            return {}

    given = Stateful(3)
    cut, _ = agree_on_length(given, epoch(None))
    assert hasattr(given, "state_dict") and not hasattr(cut, "state_dict")
    assert cut.n == 3


def test_an_attribute_that_is_set_reaches_the_loader() -> None:
    given = DataLoader(TensorDataset(torch.arange(9)))
    cut, _ = agree_on_length(given, epoch(6))
    cut._iterator = "another"
    assert given._iterator == "another"  # type: ignore[comparison-overlap]


def test_a_loader_that_ends_before_its_length_is_an_error() -> None:
    cut, _ = agree_on_length(loader(Lying(5)), epoch(7))
    with pytest.raises(DataError, match="said it had 7 batches and ended after 5"):
        list(cut)


@pytest.mark.parametrize("data", [Stream(3), TensorDataset(torch.arange(3))])
def test_a_batch_of_nothing_is_an_error(data: Any) -> None:
    given = DataLoader(data, collate_fn=lambda _: None)
    cut, _ = agree_on_length(given, epoch(None if isinstance(data, Stream) else 3, 3))
    with pytest.raises(DataError, match="the training loader yielded None"):
        list(cut)


@pytest.mark.parametrize("stage", ["train", "validate"])
def test_a_client_without_batches_is_an_error_for_all(stage: str) -> None:
    with pytest.raises(DataError, match=rf"the {stage} data of client 1 have no batch .*: 3, 0\)"):
        agree_on_length(DataLoader(TensorDataset(torch.arange(3))), epoch(0, stage=stage))
    cut, _ = agree_on_length(loader(Stream(3)), epoch(None, 0))
    with pytest.raises(DataError, match=r"the train data of client 1 have no batch .*: 3, 0\)"):
        list(cut)


def test_a_site_without_batches_is_named() -> None:
    of_sites = replace(epoch(0), names=ClientNames(("lyon", "oslo")))
    words = r"the train data of site oslo have no batch \(batches of each client: site lyon 3, site oslo 0\)"
    with pytest.raises(DataError, match=words):
        agree_on_length(DataLoader(TensorDataset(torch.arange(3))), of_sites)


def test_nobody_having_batches_is_left_to_lightning() -> None:
    given = DataLoader(TensorDataset(torch.arange(0)))
    assert agree_on_length(given, epoch(0, stage="validate")) == (given, [0, 0])
