"""scvi-tools' variational autoencoder of single cells under ParaBlock; each client has cells of its own.

torchrun --standalone --nproc-per-node 2 examples/scvi_vae.py [DELAY_STEPS]
"""

import os
import sys

import numpy as np
import scvi
from anndata import AnnData

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors

RANK, CLIENTS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def cells(client: int, count: int = 512, genes: int = 60, kinds: int = 4) -> AnnData:
    """Counts of genes in cells of a few kinds, the client's own."""
    draw = np.random.default_rng(client)
    rates = draw.gamma(0.5, 8, (kinds, genes))
    return AnnData(draw.poisson(rates[draw.integers(0, kinds, count)]).astype(np.float32))


def main(delay_steps: int = 4) -> None:
    """Fit, and say what came out."""
    scvi.settings.seed = 0
    table = cells(RANK)
    scvi.model.SCVI.setup_anndata(table)
    model = scvi.model.SCVI(table, n_hidden=64, n_layers=2)
    strategy = ParaBlockStrategy(local_steps=4, delay_steps=delay_steps, buffers="average")
    before = model.get_reconstruction_error()["reconstruction_loss"]
    model.train(
        max_epochs=24,
        accelerator="cpu",
        devices=CLIENTS,
        strategy=strategy,
        batch_size=64,
        plan_kwargs={"lr": 5e-3, "n_epochs_kl_warmup": 10},
        datasplitter_kwargs={"drop_last": True},
        enable_progress_bar=False,
    )
    after = model.get_reconstruction_error()["reconstruction_loss"]
    print(f"client {RANK}: loss {before:.4f} -> {after:.4f}, weights {hash_tensors(model.module.parameters())[:12]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
