"""Chemprop's message passing network under ParaBlock; each client has molecules of its own.

torchrun --standalone --nproc-per-node 2 examples/chemprop_mpnn.py [DELAY_STEPS]
"""

import os
import sys

import lightning as L
import numpy as np
from chemprop import data, models, nn
from rdkit import Chem
from rdkit.Chem import Descriptors

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.blocks.flat import hash_tensors

RANK, CLIENTS = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])


def molecules(client: int, count: int) -> list[data.MoleculeDatapoint]:
    """Random chains of the client's own atoms with their logP, which the network is to learn."""
    draw = np.random.default_rng(client)
    atoms = [["C", "C", "O", "N"], ["C", "C", "S", "Cl"]][client % 2]
    lengths = draw.integers(3, 12, count)
    chains = ["C" + "".join(draw.choice(atoms[:3], n)) + str(draw.choice(atoms)) for n in lengths]
    return [data.MoleculeDatapoint.from_smi(s, [Descriptors.MolLogP(Chem.MolFromSmiles(s))]) for s in chains]


def main(delay_steps: int = 4) -> None:
    """Fit, and say what came out."""
    L.seed_everything(0)
    train, held_out = (data.MoleculeDataset(molecules(client, n)) for client, n in ((RANK, 256), (RANK + CLIENTS, 64)))
    module = models.MPNN(nn.BondMessagePassing(), nn.MeanAggregation(), nn.RegressionFFN(n_layers=2), batch_norm=True)
    strategy = ParaBlockStrategy(local_steps=4, delay_steps=delay_steps, buffers="average")
    trainer = L.Trainer(strategy=strategy, accelerator="cpu", devices=CLIENTS, max_epochs=12, logger=False)
    loaders = data.build_dataloader(train, 32, seed=RANK), data.build_dataloader(held_out, 32, shuffle=False)
    trainer.validate(module, loaders[1], verbose=False)
    before = float(trainer.callback_metrics["val_loss"])
    trainer.fit(module, *loaders)
    after = float(trainer.callback_metrics["val_loss"])
    print(f"client {RANK}: val_loss {before:.4f} -> {after:.4f}, weights {hash_tensors(module.parameters())[:12]}")


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
