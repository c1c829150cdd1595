"""A resumed run of secure sums sees every change of its site's training data, and of the batches that they make."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from lightning.pytorch.trainer.states import RunningStage
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, TensorDataset, WeightedRandomSampler

from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.data.sampler import ClientSampler
from lightning_parablock.errors import CheckpointError
from lightning_parablock.loading.clients_data import HostedClients
from lightning_parablock.loading.digests import MOST_SAMPLES, data_digest, data_digests, why_not_known
from lightning_parablock.loading.fit_loaders import FitLoaders, LoaderRules
from lightning_parablock.loading.shards import ShardSampler, dataset_fingerprint
from lightning_parablock.settings import Settings
from lightning_parablock.strategy.secure import SecureFit
from tests.unit.tiny_text import byte_tokenizer, write_jsonl

N = 400
TOKENIZER: Any = byte_tokenizer()
FIT = SecureFit(masks=None, salt=b"", nonce=b"")  # type: ignore[arg-type]


def numbers(changed: int | None = None, n: int = N) -> TensorDataset:
    values = torch.arange(n)
    if changed is not None:
        values[changed] = -1
    return TensorDataset(values)


def shuffled(dataset: Any = None, seed: int = 1, **options: Any) -> DataLoader[Any]:
    data = numbers() if dataset is None else dataset
    sampler = RandomSampler(data, generator=torch.Generator().manual_seed(seed))
    chosen: dict[str, Any] = {"batch_size": 8, "sampler": sampler, **options}
    return DataLoader(data, **chosen)


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return iter(torch.arange(N))


class Large(Dataset[Any]):
    def __len__(self) -> int:
        return MOST_SAMPLES + 1

    def __getitem__(self, index: int) -> Any:
        raise AssertionError("was read")


class Hashed(Large):
    sha256 = "of everything"


def test_every_sample_counts_and_random_states_stay() -> None:
    others = [shuffled(numbers(changed=17)), shuffled(numbers(n=N - 1))]
    assert dataset_fingerprint(others[0]) == dataset_fingerprint(shuffled())  # of a few samples
    generator = torch.Generator().manual_seed(5)
    given = shuffled(sampler=RandomSampler(numbers(), generator=generator))
    before = (torch.get_rng_state(), generator.get_state())
    found = data_digest(given)
    assert all(map(torch.equal, before, (torch.get_rng_state(), generator.get_state())))
    assert found == data_digest(given) == data_digest(shuffled()) and re.fullmatch("[0-9a-f]{64}", found)
    assert len({found, *map(data_digest, others)}) == 3


def test_the_order_and_the_batches_count() -> None:
    samplers = [ShardSampler(range(N), shuffle=True, seed=seed) for seed in (1, 2)]
    samplers += [ShardSampler(range(1, N), shuffle=True, seed=1), ClientSampler(N, 1, 0), ClientSampler(N, 2, 0)]
    samplers += [WeightedRandomSampler([1.0] * N, N), WeightedRandomSampler([50.0] + [1.0] * (N - 1), N)]
    given = [shuffled(sampler=sampler) for sampler in samplers]
    given += [shuffled(), shuffled(batch_size=4), shuffled(num_workers=1), shuffled(drop_last=True)]
    assert len({data_digest(loader) for loader in given}) == len(given)
    later = ClientSampler(N, 1, 0)
    later.set_epoch(3)  # as the checkpoint finds it
    assert data_digest(shuffled(sampler=later)) == data_digest(shuffled(sampler=ClientSampler(N, 1, 0)))
    assert later.epoch == 3


def test_the_packages_own_data_are_compared_row_by_row_and_with_their_options(tmp_path: Path) -> None:
    def made(n_rows: int = 40, **options: Any) -> str:
        path = write_jsonl(tmp_path / f"{n_rows}.jsonl", ({"q": f"{i}?", "a": f"{i}"} for i in range(n_rows)))
        columns: dict[str, Any] = {"prompt_field": "q", "answer_field": "a", "val_fraction": 0.0, "partition": "own"}
        columns |= {"sequence_length": 16, **options}
        data = FederatedTextDataModule(source=str(path), **columns)
        data.tokenizer = TOKENIZER
        data.setup("fit")
        return data_digest(data.train_dataloader())

    digests = [made(), made(39), made(seed=1), made(sequence_length=8), made(batch_size=3)]
    assert digests[0] == made() and len(set(digests)) == len(digests)


@pytest.mark.parametrize(
    ("given", "why"),
    [
        (DataLoader(Stream()), "a Stream cannot be read"),
        ([torch.ones(1)], "a list cannot be read"),
        (
            DataLoader(Large()),
            "it would take too long to hash the more than 100,000 samples of a Large; give it an attribute sha256",
        ),
    ],
)
def test_data_that_cannot_be_compared_are_never_the_same(
    given: Any, why: str, caplog: pytest.LogCaptureFixture
) -> None:
    digest = data_digest(given)
    assert digest != data_digest(given)
    assert why in (why_not_known(digest) or "")
    with caplog.at_level(logging.WARNING):
        FIT.refuse_other_data(None, [digest])
    assert "cannot be resumed from its checkpoints" in caplog.text and why in caplog.text
    with pytest.raises(CheckpointError, match=rf"cannot be compared with .* \({why}"):
        FIT.refuse_other_data(FIT.state([digest]), [data_digest(given)])


def test_a_data_set_that_clients_of_a_site_share_is_read_once() -> None:
    class Counting(Dataset[Any]):
        n_read = 0

        def __len__(self) -> int:
            return 9

        def __getitem__(self, index: int) -> Any:
            self.n_read += 1
            return index

    shared = Counting()
    shards = [DataLoader(shared, sampler=ShardSampler(range(i, 9, 3), shuffle=True, seed=i)) for i in range(3)]
    digests = data_digests(shards)
    assert shared.n_read == 9 and len(set(digests)) == 3
    assert digests == [data_digest(shard) for shard in shards]


def test_a_large_data_set_with_a_hash_of_its_own_is_not_read() -> None:
    digest = data_digest(DataLoader(Hashed()))
    assert digest == data_digest(DataLoader(Hashed())) and why_not_known(digest) is None


def test_a_resumed_run_is_refused_with_other_data() -> None:
    saved = FIT.state([data_digest(shuffled())])
    FIT.refuse_other_data(saved, [data_digest(shuffled())])
    for other in (shuffled(numbers(changed=17)), shuffled(batch_size=2)):
        with pytest.raises(CheckpointError, match="training data are not those with which the checkpoint was saved"):
            FIT.refuse_other_data(saved, [data_digest(other)])


def test_all_training_loaders_count_and_none_that_was_replaced() -> None:
    loop = SimpleNamespace(_data_fetcher=None, _combined_loader=None)
    rules = LoaderRules(lambda: Settings(), HostedClients((0,), 0, 7, lambda value: [value]), n_ranks=1, cuts=True)
    trainer: Any = SimpleNamespace(fit_loop=loop)
    fit = FitLoaders(trainer, rules, lambda: None)  # type: ignore[arg-type, return-value]

    def set_up(*loaders: DataLoader[Any]) -> None:
        made = [fit.process(loader, RunningStage.TRAINING) for loader in loaders]
        loop._combined_loader = SimpleNamespace(flattened=made)

    for _ in range(2):  # as with estimated_stepping_batches before
        set_up(DataLoader(numbers()), shuffled())
        assert fit.fixed_orders() == [True, False]
        assert fit.data_digests() == [data_digest(DataLoader(numbers())), data_digest(shuffled())]
    set_up(shuffled(batch_size=3))
    assert fit.data_digests() == [data_digest(shuffled(batch_size=3))]
