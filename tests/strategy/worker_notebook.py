"""A fit in a notebook, whose weights go to a file. Usage: worker_notebook.py FILE DEVICES.

One device trains in the process that is there, two are forked; under torchrun's variables this is an ordinary script.
"""

from __future__ import annotations

import os
import sys
from unittest import mock

import torch
from lightning.pytorch import Trainer, seed_everything
from lightning.pytorch.trainer.connectors import accelerator_connector

from lightning_parablock import ParaBlockStrategy
from tests.support.cli_toys import Toy, ToyData


def main() -> None:
    """Fit, and save what the notebook's next cell sees."""
    path, devices = sys.argv[1], int(sys.argv[2])
    in_notebook = "LOCAL_RANK" not in os.environ
    seed_everything(0)
    torch.set_num_threads(1)
    start_method = "fork" if in_notebook and devices > 1 else "popen"
    with mock.patch.object(accelerator_connector, "_IS_INTERACTIVE", in_notebook):
        trainer = Trainer(
            strategy=ParaBlockStrategy(local_steps=4, blocks=2, start_method=start_method),
            accelerator="cpu",
            devices=devices,
            max_steps=14,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
        )
    module = Toy()
    trainer.fit(module, datamodule=ToyData())
    if trainer.is_global_zero:
        torch.save(module.state_dict(), path)


if __name__ == "__main__":
    main()
