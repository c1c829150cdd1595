"""Identical data sets are cut into fixed shards, different ones stay; nothing random is disturbed by finding out."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.data import _update_dataloader  # pyright: ignore[reportPrivateUsage]
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_parablock.data.sampler import ClientSampler
from lightning_parablock.errors import DataError
from lightning_parablock.loading.clients_data import HostedClients, shared_loaders
from lightning_parablock.loading.shards import (
    Cutting,
    ShardSampler,
    cut_or_keep,
    dataset_fingerprint,
    rows_line,
    shard_indices,
)

TRAINING, VALIDATING = RunningStage.TRAINING, RunningStage.VALIDATING


def numbers(n: int, start: int = 0) -> TensorDataset:
    return TensorDataset(torch.arange(start, start + n))


def apply(loaders: Sequence[object], stage: RunningStage = TRAINING, seed: int = 0) -> list[tuple[Any, str]]:
    """What each client gets, as if all had gathered their fingerprints."""
    prints = [dataset_fingerprint(loader) for loader in loaders]
    return [
        cut_or_keep(loader, stage, Cutting(client, seed, lambda own: prints)) for client, loader in enumerate(loaders)
    ]


def samples(loader: Any, epoch: int = 0) -> list[int]:
    if isinstance(loader.sampler, ShardSampler):
        loader.sampler.set_epoch(epoch)
    return [int(value) for (batch,) in loader for value in batch]


# shards


@settings(max_examples=100, derandomize=True, deadline=None, database=None)
@given(st.integers(0, 300), st.integers(1, 9), st.integers(0, 2**40))
def test_shards_are_disjoint_complete_and_equal_to_one_sample(n_samples: int, n_shards: int, seed: int) -> None:
    shards = [shard_indices(n_samples, n_shards, shard, seed) for shard in range(n_shards)]
    assert sorted(i for shard in shards for i in shard) == list(range(n_samples))
    assert max(map(len, shards)) - min(map(len, shards)) <= 1
    assert all(shard == sorted(shard) for shard in shards)
    assert shards == [shard_indices(n_samples, n_shards, shard, seed) for shard in range(n_shards)]


def test_another_seed_makes_other_shards() -> None:
    assert shard_indices(50, 2, 0, seed=1) != shard_indices(50, 2, 0, seed=2)
    assert shard_indices(50, 2, 0, seed=1) != list(range(0, 50, 2)), "not drawn at random"


# identical sets


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("n_clients", [2, 3])
def test_identical_sets_are_cut_into_shards_that_stay_the_same_every_epoch(n_clients: int, shuffle: bool) -> None:
    given_loaders = [DataLoader(numbers(31), batch_size=4, shuffle=shuffle) for _ in range(n_clients)]
    loaders, words = zip(*apply(given_loaders), strict=True)
    epochs = [[samples(loader, epoch) for loader in loaders] for epoch in range(3)]
    for shards in epochs:
        assert Counter(i for shard in shards for i in shard) == Counter(range(31)), "not disjoint and complete"
    for client in range(n_clients):
        orders = [shards[client] for shards in epochs]
        assert len({tuple(sorted(order)) for order in orders}) == 1, "the shard changed with the epoch"
        assert len({tuple(order) for order in orders}) == (3 if shuffle else 1)
        if not shuffle:
            assert orders[0] == sorted(orders[0])
    assert all(f"one of {n_clients} fixed, disjoint shards" in word for word in words)


def test_the_loaders_other_options_stay() -> None:
    (loader, _), _ = apply([DataLoader(numbers(31), batch_size=4, drop_last=True, shuffle=True) for _ in range(2)])
    assert (loader.batch_size, loader.drop_last, len(loader)) == (4, True, 4)


def test_different_sets_stay_as_they_are() -> None:
    given_loaders = [DataLoader(numbers(10, start=100 * client), shuffle=True) for client in range(3)]
    for given_loader, (loader, word) in zip(given_loaders, apply(given_loaders), strict=True):
        assert loader is given_loader
        assert "differs from all others" in word


def test_some_identical_and_some_different() -> None:
    loaders = [DataLoader(numbers(12)), DataLoader(numbers(12, start=50)), DataLoader(numbers(12))]
    (first, _), (second, _), (third, word) = apply(loaders)
    assert second is loaders[1]
    assert sorted(samples(first) + samples(third)) == list(range(12))
    assert word.startswith("clients 0, 2 have identical data sets: each takes one of 2")


def test_sets_of_different_length_are_different() -> None:
    loaders = [DataLoader(numbers(12)), DataLoader(numbers(13))]
    assert [loader for loader, _ in apply(loaders)] == loaders


@pytest.mark.parametrize("stage", [TRAINING, VALIDATING])
def test_fewer_samples_than_clients_is_an_error(stage: RunningStage) -> None:
    with pytest.raises(DataError, match=rf"the {stage.value} data set has 2 samples for 3 clients"):
        apply([DataLoader(numbers(2)) for _ in range(3)], stage)


# what cannot be cut


class Stream(IterableDataset[Tensor]):
    def __iter__(self) -> Iterator[Tensor]:
        return iter(torch.arange(5))


class CountedStream(Stream):
    def __len__(self) -> int:
        return 5


@pytest.mark.parametrize("make", [Stream, CountedStream])
def test_streams_stay_and_are_not_read(make: Callable[[], Stream]) -> None:
    loaders = [DataLoader(make()) for _ in range(2)]
    for given_loader, (loader, word) in zip(loaders, apply(loaders), strict=True):
        assert loader is given_loader
        assert "cannot be indexed" in word
        assert "identical" not in word and "compared" in word, "only the types of two streams are the same"


def test_streams_are_left_to_their_client_and_not_cut_among_several() -> None:
    loader = DataLoader(Stream())
    told = [(dataset_fingerprint(loader), (0,)), (dataset_fingerprint(loader), (1,))]
    assert shared_loaders(loader, HostedClients((1,), 1, 0, lambda own: told), cuts=True) == {1: loader}
    told = [(dataset_fingerprint(loader), (0, 1))]
    with pytest.raises(DataError, match=r"clients 0, 1 share a stream \(Stream\).*client_dataloader\(client\)"):
        shared_loaders(loader, HostedClients((0, 1), 0, 0, lambda own: told), cuts=True)


def test_what_was_compared_is_said() -> None:
    class Hashed(TensorDataset):
        sha256 = "of everything"

    for dataset, said in ((numbers(12), "by size and 12 samples"), (Hashed(torch.arange(99)), "whole")):
        (_, word), _ = apply([DataLoader(dataset) for _ in range(2)])
        assert word.endswith(f"(compared {said})")
    assert dataset_fingerprint(DataLoader(Hashed(torch.arange(99)))) == "of everything"


def test_a_distributed_sampler_is_explained() -> None:
    def loader(rank: int) -> DataLoader[Any]:
        return DataLoader(numbers(10), sampler=DistributedSampler(numbers(10), 2, rank))

    loaders = [loader(0), loader(1)]
    with pytest.raises(DataError, match=r"\(DistributedSampler\).*Leave it out") as error:
        apply(loaders)
    assert "train on all of it" not in str(error.value), "each client would train on its sampler's part"
    for given_loader, (kept, word) in zip(loaders, apply(loaders, VALIDATING), strict=True):
        assert kept is given_loader
        assert "uses the part that its DistributedSampler chooses" in word


def test_a_set_dealt_to_one_client_is_its_own_whatever_is_in_it() -> None:
    loaders = [DataLoader(numbers(10), sampler=ClientSampler(10, 0, client)) for client in range(2)]
    assert [loader for loader, _ in apply(loaders)] == loaders


# predictions


def as_lightning_hands_over(loader: DataLoader[Any]) -> DataLoader[Any]:
    """A prediction loader with the wrapper that notes the indices of its batches."""
    return _update_dataloader(loader, loader.sampler, RunningStage.PREDICTING)


def test_prediction_sets_are_cut_and_their_indices_stay_those_of_the_rows() -> None:
    loaders = [as_lightning_hands_over(DataLoader(numbers(11, 100), batch_size=2)) for _ in range(2)]
    seen: list[int] = []
    for loader, word in apply(loaders, RunningStage.PREDICTING):
        assert "one of 2 fixed, disjoint shards" in word
        values = [int(value) for (batch,) in loader for value in batch]
        assert [100 + i for batch in loader.batch_sampler.seen_batch_indices for i in batch] == values
        seen += values
    assert sorted(seen) == list(range(100, 111))


def test_a_prediction_set_with_a_sampler_of_its_own_is_named_by_that() -> None:
    loaders = [as_lightning_hands_over(with_own_sampler("list")) for _ in range(2)]
    for given_loader, (loader, word) in zip(loaders, apply(loaders, RunningStage.PREDICTING), strict=True):
        assert loader is given_loader
        assert "(list): each client uses all of it" in word


# what is said of the rows


def test_rows_are_accounted_for() -> None:
    whole = DataLoader(numbers(260), batch_size=8)
    assert rows_line("client 1", whole) == "client 1: 260 of 260 rows"
    (shard, _), _ = apply([DataLoader(numbers(31), batch_size=4, drop_last=True, shuffle=True) for _ in range(2)])
    assert rows_line("site a", shard) == "site a: 16 of 31 rows"
    rest = DataLoader(numbers(10), batch_size=4, drop_last=True)
    assert rows_line("c", rest) == "c: 10 of 10 rows; left out: 2 of each epoch, too few for a batch (drop_last)"
    assert rows_line("c", with_own_sampler("list")) == "c: 3 of 10 rows, chosen by list"
    assert rows_line("c", with_own_sampler("batches")) == "c: those of 10 rows that its Own chooses"
    assert rows_line("c", DataLoader(Stream())) == "c: everything that its Stream yields"
    assert rows_line("c", DataLoader(numbers(10), sampler=ClientSampler(10, 0, 0))) is None


def test_something_that_is_no_loader_stays() -> None:
    loaders = [[torch.zeros(1), torch.ones(1)] for _ in range(2)]
    assert [loader for loader, _ in apply(loaders)] == loaders


def with_own_sampler(kind: str) -> DataLoader[Any]:
    data = numbers(10)
    if kind == "weighted":
        return DataLoader(data, sampler=WeightedRandomSampler([1.0] * 10, 10))
    if kind == "with replacement":
        return DataLoader(data, sampler=RandomSampler(data, replacement=True))
    if kind == "list":
        return DataLoader(data, sampler=[3, 1, 2])

    class Own(BatchSampler):
        pass

    return DataLoader(data, batch_sampler=Own(SequentialSampler(data), 2, False))


@pytest.mark.parametrize("kind", ["weighted", "with replacement", "list", "batches"])
def test_a_sampler_of_ones_own_cannot_be_cut(kind: str) -> None:
    loaders = [with_own_sampler(kind) for _ in range(2)]
    name = {"weighted": "WeightedRandomSampler", "with replacement": "RandomSampler", "list": "list", "batches": "Own"}
    with pytest.raises(
        DataError, match=rf"clients 0, 1 have identical .*\({name[kind]}\).*use_distributed_sampler=False"
    ):
        apply(loaders)
    for given_loader, (loader, word) in zip(loaders, apply(loaders, VALIDATING), strict=True):
        assert loader is given_loader
        assert "each client uses all of it" in word


def test_a_sampler_of_ones_own_over_different_sets_is_fine() -> None:
    loaders = [
        DataLoader(numbers(10, start=100 * client), sampler=WeightedRandomSampler([1.0] * 10, 10))
        for client in range(2)
    ]
    assert [loader for loader, _ in apply(loaders)] == loaders


# the fingerprint


class Noisy(Dataset[dict[str, Any]]):
    """The same samples on each client, augmented at random from every generator there is."""

    def __init__(self, offset: float = 0.0) -> None:
        self.offset = offset

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {
            "torch": torch.rand(3) + self.offset,
            "python": random.random(),
            "numpy": np.random.rand(2),
            "label": f"{index}",
        }


def scramble(seed: int) -> None:
    torch.manual_seed(seed)
    random.seed(seed)
    np.random.seed(seed)


def random_states() -> list[Any]:
    kind, keys, *rest = np.random.get_state()
    return [torch.get_rng_state().tolist(), random.getstate(), (kind, keys.tolist(), *rest)]  # type: ignore[union-attr]


def test_random_augmentation_does_not_change_the_fingerprint() -> None:
    prints = []
    for client in range(2):
        scramble(client)
        prints.append(dataset_fingerprint(DataLoader(Noisy())))
    assert prints[0] == prints[1]
    assert dataset_fingerprint(DataLoader(Noisy(offset=1.0))) != prints[0]


def test_the_fingerprint_leaves_every_random_state_as_it_was() -> None:
    scramble(7)
    before = random_states()
    dataset_fingerprint(DataLoader(Noisy()))
    assert random_states() == before


@pytest.mark.parametrize("position", [0, 19, 10])
def test_the_fingerprint_sees_first_last_and_some_between(position: int) -> None:
    data = torch.arange(20)
    changed = data.clone()
    changed[position] = -1
    seen = dataset_fingerprint(DataLoader(TensorDataset(data))) != dataset_fingerprint(
        DataLoader(TensorDataset(changed))
    )
    assert seen


@pytest.mark.parametrize(
    "data",
    [
        [torch.tensor([1.0])],
        [np.ones(2)],
        ["a"],
        [("a", 1)],
        [{"a": 1}],
        [None],
        [torch.tensor([1], dtype=torch.int32)],
        [torch.tensor([[1.0]])],
        [torch.ones(1, 3)[:, :1].T],  # its last stride is 3
        [],
    ],
    ids=repr,
)
def test_fingerprints_go_by_value_type_and_shape(data: list[Any]) -> None:
    others = [[torch.tensor([2.0])], [np.zeros(2)], ["b"], [("a", 2)], [{"b": 1}], [0]]
    own = dataset_fingerprint(DataLoader(data))  # type: ignore[arg-type]
    assert own == dataset_fingerprint(DataLoader(list(data)))  # type: ignore[arg-type]
    assert own not in [dataset_fingerprint(DataLoader(other)) for other in others]  # type: ignore[arg-type]
