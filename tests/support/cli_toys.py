"""A model and a data module of a few hundred parameters for the command line's tests."""

from __future__ import annotations

import time
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_parablock.errors import ParaBlockError


class Toy(LightningModule):
    """A stack of linear layers that learns to answer 1.

    Args:
        learning_rate: Step size, dimensionless.
        layers: Number of layers.
        sleep_s: Seconds that every training step takes longer.
        fail_at_step: Training step that raises, as ``fail_with`` says; None never.
        fail_with: "known" raises an error of the package, "unknown" another one.
        fail_on_rank: The one rank that fails; None all.
    """

    def __init__(
        self,
        learning_rate: float = 0.05,
        layers: int = 4,
        sleep_s: float = 0.0,
        fail_at_step: int | None = None,
        fail_with: str = "known",
        fail_on_rank: int | None = None,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.network = nn.Sequential(*(nn.Linear(8, 8) for _ in range(layers)))

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(self.hparams["sleep_s"])
        if batch_idx == self.hparams["fail_at_step"] and self.hparams["fail_on_rank"] in (None, self.global_rank):
            raise ParaBlockError("the toy broke") if self.hparams["fail_with"] == "known" else ZeroDivisionError("oh")
        loss = self._loss(batch)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), sync_dist=True)

    def test_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("test_loss", self._loss(batch), sync_dist=True)

    def predict_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.network(batch)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.hparams["learning_rate"])

    def _loss(self, batch: Tensor) -> Tensor:
        return (self.network(batch) - 1).square().mean()


class ToyData(LightningDataModule):
    """Random vectors.

    Args:
        source: Where they come from; of no effect.
        examples: Number of vectors.
    """

    def __init__(self, source: str = "nowhere", examples: int = 64) -> None:
        super().__init__()
        self.examples = examples

    def train_dataloader(self) -> DataLoader[Any]:
        vectors = torch.randn(self.examples, 8, generator=torch.Generator().manual_seed(0))
        return DataLoader(vectors, batch_size=2)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def test_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def predict_dataloader(self) -> DataLoader[Any]:
        return self.train_dataloader()

    def describe(self) -> dict[str, Any]:
        return {"source": "toy", "rows_per_client": [32, 32]}

    def train_fingerprint(self) -> str:
        return f"fingerprint of {self.trainer.global_rank if self.trainer is not None else 'nobody'}"
