"""What all peers have in common: the model, each client's data, and the held-out loss."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, Subset

from benchmarks.harness.gsm8k import data_options
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.peers.job import Job, rank, sent_bytes
from benchmarks.peers.methods import BATCH_SIZE, LORA_RANK, N_CLIENTS, SEQUENCE_LENGTH
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM

Sums = tuple[float, int]
"""Summed loss in nats and the number of tokens summed over."""


class PeerModel(CausalLM):
    """SmolLM2 whose validation keeps sums for the launcher to add up over clients, so that none of it is sent."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.sums: list[Sums] = []

    def validation_step(self, batch: dict[str, torch.Tensor], batch_idx: int, dataloader_idx: int = 0) -> None:
        """Add a batch's summed loss to the sums."""
        sums, counts = self.losses(batch)
        self.sums.append((float(sums.sum()), int(counts.sum())))

    def taken_sums(self) -> Sums:
        """Return the sums since the last call and reset them."""
        sums, self.sums = self.sums, []
        return sum(total for total, _ in sums), sum(count for _, count in sums)

    def held_out(self, batches: Iterable[dict[str, torch.Tensor]]) -> Sums:
        """The sums over batches, with the weights as they are now."""
        with torch.no_grad():
            for index, batch in enumerate(batches):
                self.validation_step(batch, index)
        return self.taken_sums()


class PeerData(FederatedTextDataModule):
    """GSM8K split at random among the clients; each evaluates its share of the held-out examples."""

    def val_dataloader(self) -> DataLoader[dict[str, Any]]:
        """Every N-th held-out example, starting at this client's number."""
        mine = Subset(self.val_set, range(rank(), len(self.val_set), N_CLIENTS))
        return DataLoader(mine, batch_size=BATCH_SIZE)


def model_of(job: Job) -> PeerModel:
    """The model, with the same weights on every client, including adapters."""
    torch.set_num_threads(1)
    pl.seed_everything(job.seed, verbose=False)
    rank = LORA_RANK if job.of_method.kind == "lora" else 0
    return PeerModel(model=PACKAGE, layers=job.of_size.layers, learning_rate=job.learning_rate, lora_rank=rank)


def data_of(job: Job, module: PeerModel) -> PeerData:
    """This client's examples: as many as the steps need, in the same order for every method."""
    data = PeerData(
        **data_options(job.train, job.test),
        val_examples=job.of_size.val_examples,
        train_examples=job.of_size.steps * BATCH_SIZE,
        sequence_length=SEQUENCE_LENGTH,
        batch_size=BATCH_SIZE,
        seed=job.seed,
        n_clients=N_CLIENTS,
        client_id=rank(),
    )
    data.tokenizer = module.tokenizer
    return data


def loss_of(module: PeerModel, batch: dict[str, torch.Tensor]) -> torch.Tensor:
    """Mean loss of a batch in nats per predicted token, which :meth:`CausalLM.training_step` minimises."""
    return module.mean_loss(batch)


def warm_up(module: PeerModel, optimizer: torch.optim.Optimizer) -> None:
    """One step on the same tokens on every client, so that no timed step is the first to touch its memory."""
    ids = torch.arange(BATCH_SIZE * SEQUENCE_LENGTH).reshape(BATCH_SIZE, SEQUENCE_LENGTH)
    loss_of(module, {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}).backward()
    optimizer.step()
    optimizer.zero_grad()


def point(step: int, sums: Sums, start_bytes: int, *, drained: bool = False) -> dict[str, Any]:
    """One point of a curve: this client's part of the held-out loss, and the bytes it has sent so far."""
    total, count = sums
    sent = sent_bytes() - start_bytes
    return {"step": step, "total": total, "count": count, "sent_bytes": sent, "drained": drained}
