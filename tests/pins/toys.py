"""A model of single operations on each weight by itself: the same bits on every machine.

No sum is taken in an order that a library could choose, and every factor is a power of two, so that a fused
multiplication and addition rounds as the two by themselves do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lightning_parablock.errors import ParaBlockError

LAYERS, WIDTH = 3, 40
STEPS = 32
"""Optimizer steps of a run."""


_FAILURES = {kind.__name__: kind for kind in (ParaBlockError, KeyboardInterrupt)}


class Layer(nn.Module):
    """Weights of their own, which nothing mixes."""

    def __init__(self, index: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(WIDTH) / 64 - index / 4)


class Targets(Dataset[Tensor]):
    """Rows of one client: multiples of 1/128 between 0 and 1."""

    def __init__(self, client: int, rows: int = 2 * STEPS) -> None:
        self.client, self.rows = client, rows

    def __len__(self) -> int:
        return self.rows

    def __getitem__(self, index: int) -> Tensor:
        places = torch.arange(LAYERS * WIDTH)
        return ((37 * index + 11 * self.client + 13 * places) % 128 / 128).view(LAYERS, WIDTH)


class Exact(LightningModule):
    """Moves every weight towards the targets of its own place.

    Args:
        momentum: Of the client's SGD, a power of two or 0.
        fail_at_step: Training step that raises; None never.
        fail_with: Name of the exception it raises.
    """

    def __init__(
        self, momentum: float = 0.0, fail_at_step: int | None = None, fail_with: str = "ParaBlockError"
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.layers = nn.ModuleList(Layer(index) for index in range(LAYERS))
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.seen: Tensor

    def client_dataloader(self, client: int) -> DataLoader[Tensor]:
        return DataLoader(Targets(client), batch_size=1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        if batch_idx == self.hparams["fail_at_step"]:
            raise _FAILURES[self.hparams["fail_with"]]("the toy broke")
        self.seen += 1
        return self._loss(batch)

    def validation_step(self, batch: Tensor, batch_idx: int) -> None:
        self.log("val_loss", self._loss(batch), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.25, momentum=self.hparams["momentum"], foreach=False)

    def _loss(self, batch: Tensor) -> Tensor:
        """Every weight is in two terms, one of its own layer and one of the next, so that blocks depend on each other.

        Two gradients are added up for it: their order does not matter.
        """
        weights: list[Any] = [layer.weight for layer in self.layers]
        ways = [weights[index] + weights[index - 1] / 4 - batch[0, index] for index in range(LAYERS)]
        return sum(((way * way).sum() for way in ways), torch.zeros(())) / 2


class ExactData(LightningDataModule):
    """The same rows for the command line.

    Args:
        source: Where they come from; of no effect.
    """

    def __init__(self, source: str = "nowhere") -> None:
        super().__init__()

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Targets(0, 8), batch_size=1)

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(Targets(0, 2), batch_size=1)


def fit(strategy: Any, folder: Path, *, module: Exact | None = None, ckpt_path: Path | None = None, **more: Any) -> Any:
    """Train for :data:`STEPS` on the CPU, and return the strategy."""
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "limit_val_batches": 0}
    options: dict[str, Any] = {"enable_checkpointing": False, **quiet, **more}
    trainer = Trainer(
        strategy=strategy, accelerator="cpu", devices=1, max_steps=STEPS, default_root_dir=str(folder), **options
    )
    trainer.fit(module or Exact(), DataLoader(Targets(0), batch_size=1), ckpt_path=ckpt_path)
    return trainer.strategy
