"""Clients that take turns on one process: what follows a client, what belongs to the round, and what is refused."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset, SubsetRandomSampler

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.errors import ConfigurationError, DataError
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.loading.client_loaders import ClientStream
from lightning_parablock.loading.clients_data import HostedClients, agree_on_epoch
from lightning_parablock.settings import Settings
from tests.support.lightning_run import trainer_for

K = 2


class Rows(Dataset[Tensor]):
    """Of client i all rows are near i."""

    def __init__(self, client: int, n: int = 6) -> None:
        self.client, self.n = client, n

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> Tensor:
        return torch.full((4,), float(self.client)) + 0.01 * index


class Net(LightningModule):
    """Two linear layers and running statistics; notes what it sees."""

    def __init__(self, schedule: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.norm = nn.BatchNorm1d(4)
        self.register_buffer("visits", torch.zeros((), dtype=torch.int64), persistent=False)
        self.visits: Tensor
        self.schedule = schedule
        self.rates: list[float] = []
        self.clients: list[int | None] = []
        self.seen: list[float] = []
        self.validated: list[float] = []

    def client_dataloader(self, client: int) -> DataLoader[Tensor]:
        return DataLoader(Rows(client), batch_size=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers[1](self.layers[0](self.norm(x)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        self.visits += 1
        self.visits %= 3
        self.clients.append(self.trainer.strategy.session.engine.active_client)  # type: ignore[attr-defined]
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        self.seen.append(float(batch.mean()))
        return self(batch).square().mean()

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.validated.append(float(self.norm.running_mean[0]))
        self.log("val_loss", self(batch).square().mean())

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": self.schedule(optimizer)}


def fit(module: Net, *, trainer: dict[str, Any] | None = None, val: Any = None, **options: Any) -> Trainer:
    settings: dict[str, Any] = {"local_steps": K, "blocks": 2, "seed": 3, "clients": 2, "block_order": "sequential"}
    limits: dict[str, Any] = {"max_epochs": 1, "limit_val_batches": 1}
    made = trainer_for(ParaBlockStrategy(**settings | options), **limits | (trainer or {}))
    made.fit(module, DataLoader(Rows(9), batch_size=2), val)
    return made


# --- what follows a client --------------------------------------------------------------------------------------------


def test_the_first_clients_buffers_are_shown_and_saved(tmp_path: Path) -> None:
    """Client 0 trains in rounds 0 and 4, others between; statistics move by a tenth towards each batch."""
    module = Net()
    saving = ModelCheckpoint(tmp_path, every_n_train_steps=3 * K, save_top_k=-1, filename="{step}")
    options = {"max_epochs": -1, "val_check_interval": K, "callbacks": [saving], "enable_checkpointing": True}
    relay: dict[str, Any] = {"clients": 4, "cohort": 1, "cohort_sampling": "rotation", "max_rounds": 4}
    fit(module, trainer=options, val=DataLoader(Rows(9), batch_size=2), **relay)
    assert module.clients == [0, 0, 1, 1, 2, 2, 3, 3]
    after_round_0 = 0.9 * 0.1 * 0.005 + 0.1 * 0.025
    before, *validated = module.validated
    assert (before, len(validated)) == (0.0, 4)
    assert validated == pytest.approx([after_round_0] * 4, abs=1e-6)
    assert float(module.norm.running_mean[0]) == pytest.approx(after_round_0, abs=1e-6)
    (path,) = tmp_path.glob("step=*.ckpt")
    saved = torch.load(path, weights_only=True)["state_dict"]
    assert float(saved["norm.running_mean"][0]) == pytest.approx(after_round_0, abs=1e-6)
    assert int(saved["norm.num_batches_tracked"]) == K


def test_buffers_that_come_back_to_their_first_value_follow_the_client_too() -> None:
    """A counter modulo three, which no checkpoint has: 1 2, 0 1, 2 0, ... for each client."""
    counts: list[tuple[int | None, int]] = []

    class Counts(Callback):
        def on_train_batch_start(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            counts.append((trainer.strategy.session.engine.active_client, int(pl_module.visits)))

    fit(Net(), trainer={"max_epochs": -1, "callbacks": [Counts()]}, max_rounds=4)
    for client in (0, 1):
        assert [count for who, count in counts if who == client] == [step % 3 for step in range(4 * K)]


# --- what belongs to the round ----------------------------------------------------------------------------------------


def by_epoch(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)


def plateau(optimizer: Any) -> Any:
    never_better = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=0, threshold=1e9)
    return {"scheduler": never_better, "monitor": "val_loss"}


@pytest.mark.parametrize("limit", [1.0, 5])
def test_rates_that_fall_by_epoch_fall_for_all_clients(limit: float) -> None:
    module = Net(by_epoch)
    fit(module, trainer={"max_epochs": 4, "limit_train_batches": limit})
    batches = len(module.rates) // 4
    assert module.rates == pytest.approx([0.1 * 0.5 ** (step // batches) for step in range(4 * batches)])


def test_a_plateau_is_seen() -> None:
    module = Net(plateau)
    fit(module, trainer={"max_epochs": 4}, val=DataLoader(Rows(9), batch_size=2))
    batches = len(module.rates) // 4
    assert module.rates[::batches] == pytest.approx([0.1, 0.05, 0.025, 0.0125])


def test_rates_that_fall_by_step_are_the_same_for_all_clients_of_a_round() -> None:
    module = Net(lambda optimizer: {"scheduler": by_epoch(optimizer), "interval": "step"})
    fit(module, trainer={"max_epochs": -1}, max_rounds=3, clients=3)
    assert module.rates == pytest.approx(
        [0.1 * 0.5 ** (K * t + k) for t in range(3) for _ in range(3) for k in range(K)]
    )


def test_a_frequency_that_does_not_go_into_a_turn_is_refused() -> None:
    module = Net(lambda optimizer: {"scheduler": by_epoch(optimizer), "interval": "step", "frequency": 3})
    with pytest.raises(ConfigurationError, match="steps every 3 batches, and a client's turn has 2"):
        fit(module)


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("clients", [None, 1])
def test_a_loader_for_each_client_is_asked_for_as_soon_as_clients_are_counted(clients: int | None) -> None:
    module = Net()
    fit(module, clients=clients)
    assert min(module.seen) > 8 if clients is None else max(module.seen) < 1


def test_overfitting_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="overfit_batches"):
        fit(Net(), trainer={"overfit_batches": 2})


class Shuffling(IterableDataset[int]):
    """Draws its order when the first sample is asked for, as generators do."""

    def __iter__(self) -> Iterator[int]:
        yield from torch.randperm(12).tolist()


@pytest.mark.parametrize("turn", [1, 3, 5])
def test_a_stream_that_shuffles_gives_every_sample_once_a_pass(turn: int) -> None:
    stream, whole = (ClientStream(DataLoader(Shuffling(), batch_size=None), 5, 0) for _ in range(2))
    found: list[int] = []
    for number in range(24):
        if number % turn == 0:
            torch.rand(number)  # what others draw between the turns
            stream.leave()
        found.append(int(stream.next()))
    assert sorted(found[:12]) == sorted(found[12:]) == list(range(12))
    assert found == [int(whole.next()) for _ in range(24)]
    assert found[:12] != found[12:]


def test_a_none_in_place_of_a_batch_is_an_error() -> None:
    stream = ClientStream([1, 2, None, 4], 5, 7)
    assert [stream.next(), stream.next()] == [1, 2]
    with pytest.raises(DataError, match="client 7 have a None in place of batch 2, counted from 0, of pass 0"):
        stream.next()


def test_a_client_of_a_named_site_is_reported_by_number_and_site() -> None:
    names = ClientNames(("lyon", "oslo"), 4)
    with pytest.raises(DataError, match=r"data of client 2 \(site oslo\) have no batch"):
        ClientStream([], 5, 2, names).next()
    site = HostedClients((2, 3), 1, 0, lambda value: [value], names)
    with pytest.raises(DataError, match=r"data of client 3 \(site oslo\) have no batch \(1 of 2 clients"):
        agree_on_epoch({2: [1], 3: []}, site, Settings(clients=2))


def test_the_size_of_a_client_is_that_of_its_sampler() -> None:
    rows = Rows(0, 100)
    loaders = {i: DataLoader(rows, batch_size=2, sampler=SubsetRandomSampler(range(n))) for i, n in enumerate((90, 10))}
    site = HostedClients((0, 1), 0, 0, lambda value: [value])
    assert agree_on_epoch(loaders, site, Settings(clients=2)).samples == (90, 10)


def test_blocks_that_no_round_would_train_are_refused() -> None:
    turning = {"block_order": "cyclic", "cohort": 1, "cohort_sampling": "rotation"}
    with pytest.raises(ConfigurationError, match=r"no round would train layers\.1.*block_order='sequential'"):
        fit(Net(), **turning)
    fit(Net(), **turning, clients=3, trainer={"max_epochs": -1}, max_rounds=3)
