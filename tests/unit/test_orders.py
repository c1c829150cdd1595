"""Where a site has a private salt, every training loader draws other batches, or it is known not to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SequentialSampler,
    SubsetRandomSampler,
    TensorDataset,
    WeightedRandomSampler,
)

from lightning_parablock.data.sampler import ClientSampler
from lightning_parablock.federation.turn_id import TurnId
from lightning_parablock.loading.clients_data import HostedClients
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.loading.orders import draws_order
from lightning_parablock.seeds import LocalSeed
from lightning_parablock.settings import Settings

N = 40
NUMBERS = TensorDataset(torch.arange(N))


class ByLength(BatchSampler):
    """Batches in a drawn order, of samples in a fixed one."""

    def __iter__(self) -> Iterator[list[int]]:
        batches = list(super().__iter__())
        return (batches[i] for i in torch.randperm(len(batches)).tolist())


class Own(Sampler[int]):
    """An order from a generator of its own, begun anew in each pass or continued."""

    def __init__(self, *, is_continued: bool) -> None:
        self.is_continued, self.rng = is_continued, np.random.default_rng(0)

    def __len__(self) -> int:
        return N

    def __iter__(self) -> Iterator[int]:
        rng = self.rng if self.is_continued else np.random.default_rng(0)
        return iter(rng.permutation(N).tolist())


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(N))


def loader(sampler: Any = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(NUMBERS, sampler=sampler, **options)


@pytest.mark.parametrize(
    ("given", "draws"),
    [
        (loader(shuffle=True), True),
        (loader(shuffle=True, batch_size=None, sampler=None), True),
        (loader(RandomSampler(NUMBERS, generator=torch.Generator().manual_seed(1))), True),
        (loader(WeightedRandomSampler([1.0] * N, N)), True),
        (loader(SubsetRandomSampler(range(9), torch.Generator())), True),
        (DataLoader(NUMBERS, batch_sampler=ByLength(SequentialSampler(NUMBERS), 4, False)), True),
        (loader(), False),
        (loader(range(N)), False),
        (loader(DistributedSampler(NUMBERS, 2, 0)), False),
        (loader(WeightedRandomSampler([1.0] + [0.0] * N, N)), False),
        (loader(Own(is_continued=False)), False),
        (loader(Own(is_continued=True)), None),
        (DataLoader(Stream()), None),
        ([torch.ones(1)], None),
    ],
)
def test_an_order_that_the_random_stream_changes(given: Any, draws: bool | None) -> None:
    state = torch.get_rng_state()
    assert draws_order(given) is draws
    assert torch.equal(state, torch.get_rng_state())


def test_a_loaders_own_generator_is_left_as_it_was() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    draws_order(loader(SubsetRandomSampler(range(9), generator)))
    assert torch.equal(generator.get_state(), before) and generator.initial_seed() == 3


def batches(salt: bytes, hosted: Sequence[int], given: DataLoader[Any]) -> tuple[list[Any], list[bool | None]]:
    """The batches of an epoch, and whether their orders are fixed."""
    local_seed = LocalSeed()
    local_seed.salt = salt
    turns = len(hosted) > 1
    settings = Settings(clients=4, local_steps=2) if turns else Settings()
    rank = HostedClients(tuple(hosted), 0, 7, lambda value: [value], local_seed=local_seed)
    rules = LoaderRules(lambda: settings, rank, n_ranks=1, cuts=True)
    progress = SimpleNamespace(current=SimpleNamespace(processed=0))
    loop = SimpleNamespace(epoch_progress=progress, _data_fetcher=None, _combined_loader=None)

    def of_client(_: int) -> DataLoader[Any]:
        return given

    module = SimpleNamespace(client_dataloader=of_client)
    trainer: Any = SimpleNamespace(fit_loop=loop, accumulate_grad_batches=1, lightning_module=module)
    fit = FitLoaders(trainer, rules, lambda: TurnId(0, 0, 0))
    made = fit.process(given, RunningStage.TRAINING)
    loop._combined_loader = SimpleNamespace(flattened=[made])
    return [batch[0].tolist() for batch in made], fit.fixed_orders()  # type: ignore[attr-defined]


@pytest.mark.parametrize("hosted", [(0,), (0, 1)], ids=["one client", "turns"])
@pytest.mark.parametrize("make", [lambda: loader(ClientSampler(N, 7, 0)), lambda: loader(shuffle=True)])
def test_a_salt_changes_the_batches_also_of_the_packages_own_data(make: Any, hosted: tuple[int, ...]) -> None:
    plain, is_fixed = batches(b"", hosted, make())
    assert is_fixed == [False] * len(hosted)
    salted, _ = batches(b"s" * 16, hosted, make())
    assert salted == batches(b"s" * 16, hosted, make())[0]
    assert salted != plain
    assert salted != batches(b"t" * 16, hosted, make())[0]


def test_without_a_salt_the_packages_own_data_come_in_the_order_of_the_runs_seed() -> None:
    alone = [[index] for index in ClientSampler(N, 7, 0)]
    assert batches(b"", (0,), loader(ClientSampler(N, 7, 0)))[0] == alone
