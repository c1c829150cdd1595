"""PyTorch Forecasting's Temporal Fusion Transformer under ParaBlock; each client has series of its own.

torchrun --standalone --nproc-per-node 2 examples/forecasting_tft.py [DELAY_STEPS]
"""

import os
import sys

import lightning as L
import numpy as np
import pandas as pd
from pytorch_forecasting import QuantileLoss, TemporalFusionTransformer, TimeSeriesDataSet

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors

RANK, CLIENTS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def series(client: int, count: int = 6, length: int = 120) -> pd.DataFrame:
    """Noisy waves, whose heights are the client's own."""
    draw, time = np.random.default_rng(client), np.arange(length)
    waves = [(1 + client) * np.sin(time / 4 + draw.uniform(0, 6)) + draw.normal(0, 0.1, length) for _ in range(count)]
    frames = [pd.DataFrame({"wave": str(i), "time": time, "value": wave}) for i, wave in enumerate(waves)]
    return pd.concat(frames, ignore_index=True)


def main(delay_steps: int = 4) -> None:
    """Fit, and say what came out."""
    L.seed_everything(0)
    table = series(RANK)
    columns = {"time_idx": "time", "target": "value", "group_ids": ["wave"], "time_varying_unknown_reals": ["value"]}
    lengths = {"min_encoder_length": 16, "max_encoder_length": 16, "max_prediction_length": 4}
    train = TimeSeriesDataSet(table[table.time < 100], **columns, **lengths)
    held_out = TimeSeriesDataSet.from_dataset(train, table, min_prediction_idx=100)
    options = {"learning_rate": 3e-3, "loss": QuantileLoss(), "log_interval": -1}
    module = TemporalFusionTransformer.from_dataset(train, **options)
    strategy = ParaBlockStrategy(local_steps=4, delay_steps=delay_steps, blocks=4)
    trainer = L.Trainer(strategy=strategy, accelerator="cpu", devices=CLIENTS, max_epochs=10, logger=False)
    loaders = train.to_dataloader(batch_size=32), held_out.to_dataloader(train=False, batch_size=32)
    trainer.validate(module, loaders[1], verbose=False)
    before = float(trainer.callback_metrics["val_loss"])
    trainer.fit(module, *loaders)
    after = float(trainer.callback_metrics["val_loss"])
    print(f"client {RANK}: val_loss {before:.4f} -> {after:.4f}, weights {hash_tensors(module.parameters())[:12]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
