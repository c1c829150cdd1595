"""What the speed benchmarks train: SmolLM2 on random tokens, or a timed sleep with blocks of realistic size."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.harness.smollm2 import PACKAGE, VOCABULARY


class SleepingModel(pl.LightningModule):
    """Equal blocks whose training step sleeps, to replace computation where there are more clients than cores.

    Each block has one large parameter, which receives no gradient but is exchanged all the same, and one scalar.

    Args:
        step_s: Duration of a training step in seconds.
        n_blocks: Number of blocks.
        block_scalars: Scalars per block.
        change: Standard deviation of what a step adds to the large parameter of the block it trains: always the same
            values. 0 for nothing, so that a delta is almost all zeros.
    """

    def __init__(self, step_s: float, n_blocks: int, block_scalars: int, change: float = 0.0) -> None:
        super().__init__()
        self._step_s = step_s
        generator = torch.Generator().manual_seed(0)
        self._change = change * torch.randn(block_scalars - 1, generator=generator) if change else None
        self.weights = nn.ParameterList(nn.Parameter(torch.zeros(block_scalars - 1)) for _ in range(n_blocks))
        self.scalars = nn.ParameterList(nn.Parameter(torch.zeros(())) for _ in range(n_blocks))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Sleep; the loss is the sum of the scalars."""
        time.sleep(self._step_s)
        if self._change is not None:
            with torch.no_grad():
                for weight in self.weights:
                    if weight.requires_grad:
                        weight.add_(self._change)
        return torch.stack([scalar * 1.0 for scalar in self.scalars]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=1e-3)


class SmallModel(pl.LightningModule):
    """Equal layers of a width, whose steps are so short that the cost of a strategy shows; the last one is the block.

    Args:
        width: Inputs and outputs of a layer.
        layers: Number of layers.
    """

    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(layers)))

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        """Mean square of the outputs."""
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW."""
        return torch.optim.AdamW(self.parameters(), lr=1e-4)


def module_and_blocks(model: Mapping[str, Any]) -> tuple[pl.LightningModule, list[str] | int]:
    """The module, and the patterns of its blocks.

    ``model`` is ``{"kind": "sleep", "step_s", "n_blocks", "block_scalars"}``, with or without ``change``, or
    ``{"kind": "small", "width", "layers"}``, whose batches have ``batch_size`` rows, or
    ``{"kind": "smollm2", "layers"}`` with the layers to keep (None: all), or ``{"kind": "shape", "architecture",
    "device"}``, which has random weights in bfloat16, drawn on the device. The latter two have ``blocks`` as accepted
    by the strategy.
    """
    if model["kind"] == "sleep":
        module = SleepingModel(model["step_s"], model["n_blocks"], model["block_scalars"], model.get("change", 0.0))
        return module, [rf"\.{index}$" for index in range(model["n_blocks"])]
    if model["kind"] == "small":
        return SmallModel(model["width"], model["layers"]), [rf"^layers\.{model['layers'] - 1}\."]
    from lightning_parablock.models import CausalLM

    if model["kind"] == "shape":
        with torch.device(model["device"]):
            module = CausalLM("none", architecture=json.dumps(model["architecture"]), dtype="bfloat16")
            return module, model["blocks"]
    return CausalLM(PACKAGE, layers=model.get("layers")), model["blocks"]


def loader(model: Mapping[str, Any], steps: int, client: int) -> DataLoader[Any]:
    """One batch per step: in language models ``batch_size`` sequences of ``tokens`` random tokens, seeded by client."""
    if model["kind"] == "sleep":
        return DataLoader(TensorDataset(torch.zeros(steps, 1)), batch_size=1)
    batch_size = model.get("batch_size", 1)
    if model["kind"] == "small":
        rows = torch.randn(batch_size, model["width"], generator=torch.Generator().manual_seed(client))
        return DataLoader(TensorDataset(rows.repeat(steps, 1)), batch_size=batch_size)
    generator = torch.Generator().manual_seed(client)
    vocabulary = model.get("architecture", {}).get("vocab_size", VOCABULARY)
    tokens = torch.randint(0, vocabulary, (steps * batch_size, model["tokens"]), generator=generator)
    examples: Any = [{"input_ids": t, "attention_mask": torch.ones_like(t), "labels": t} for t in tokens]
    return DataLoader(examples, batch_size=batch_size)
