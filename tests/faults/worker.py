"""One client of a fault test: a Lightning fit whose blocks are large enough that an exchange takes seconds on its link.

Usage: worker.py TOPOLOGY EXCHANGE_TIMEOUT_S STEPS. Prints "step N" after each optimizer step and the weights' hash at
the end. Under torchrun, one process per host.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors

WIDTH = 512  # a layer is a block of 1 MB
STEP_S = 0.1
LOCAL_STEPS = 4
HOLD_STEP = 18
"""In the middle of a round; there the ranks wait until the file named by HOLD_UNTIL exists, if there is such a name."""


def loss_of(layers: Iterable[nn.Linear], client: int) -> Tensor:
    """Each client has a target of its own."""
    return sum(((layer.weight - float(client + 1)) ** 2).mean() for layer in layers)  # type: ignore[return-value]


def optimizer_of(parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """What the clients train with."""
    return torch.optim.AdamW(parameters, lr=1e-2)


class Wide(LightningModule):
    """Two layers whose loss needs next to no computation."""

    def __init__(self, client: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.ModuleList(nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(2))
        self.client = client

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        time.sleep(STEP_S)
        return loss_of(self.layers, self.client)  # type: ignore[arg-type]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return optimizer_of(self.parameters())


class Tell(Callback):
    """Prints where the run stands, for the test to strike at the right moment."""

    def on_train_batch_end(self, trainer: Trainer, *args: Any) -> None:
        print(f"step {trainer.global_step}", flush=True)
        until = os.environ.get("HOLD_UNTIL", "")
        while trainer.global_step == HOLD_STEP and until and not Path(until).exists():
            time.sleep(0.05)


def main() -> None:
    """Fit and print the hash of the result."""
    topology, exchange_timeout_s, steps = sys.argv[1], float(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(1)
    strategy = ParaBlockStrategy(
        local_steps=LOCAL_STEPS,
        block_order="sequential",
        topology=topology,  # type: ignore[arg-type]
        exchange_timeout_s=exchange_timeout_s,
        heartbeat_s=0.5,
        chunk_bytes=1 << 16,
    )
    trainer = Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=1,
        num_nodes=int(os.environ["WORLD_SIZE"]),
        max_steps=steps,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        default_root_dir=tempfile.gettempdir(),  # where a failing fit leaves the committed model
        callbacks=[Tell()],
    )
    module = Wide(int(os.environ["RANK"]))
    trainer.fit(module, DataLoader(torch.zeros(steps, 1)))
    print("hash", hash_tensors(p for p in module.parameters()), flush=True)


if __name__ == "__main__":
    main()
