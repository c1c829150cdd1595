"""One rank of the run that test_killed.py kills again and again: resumes from its last checkpoint, says what it does.

Prints "EVENT compute", "EVENT exchange", "EVENT save" and "EVENT validation" when these begin, and the weights' hash at
the end. The checkpoint is overwritten every few steps, so that a kill may come in the middle of that.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback

from lightning_parablock.blocks.flat import hash_tensors
from lightning_parablock.checkpointing import resumed, sidecars
from tests.strategy.scenarios.resume import K, Net, loaders, trainer_for

PATH = Path(os.environ["SCRATCH"], "run.ckpt")
SAVE_EVERY_STEPS = 3


def say(event: str) -> None:
    """Announce what begins, and leave time to strike."""
    print(f"EVENT {event}", flush=True)
    time.sleep(0.004)


class Telling(Callback):
    """Announces steps and validations, and saves."""

    def on_train_batch_start(self, *args: Any) -> None:
        say("compute")

    def on_train_batch_end(self, trainer: Any, *args: Any) -> None:
        if trainer.global_step % K == 0:
            say("exchange")
        if trainer.global_step % SAVE_EVERY_STEPS == 0:
            trainer.save_checkpoint(PATH)

    def on_validation_batch_start(self, *args: Any) -> None:
        say("validation")


def slow(write: Any) -> Any:
    """A write whose every stage can be struck."""

    def wrapped(path: Path, fill: Any) -> None:
        def fill_slowly(temporary: Path) -> None:
            say("save")
            fill(temporary)
            say("save")

        write(path, fill_slowly)
        say("save")

    return wrapped


def main() -> None:
    """Train to the end, from the last checkpoint where there is one."""
    torch.set_num_threads(1)
    sidecars.write_atomically = slow(sidecars.write_atomically)  # of the sidecars
    resumed.write_atomically = sidecars.write_atomically  # of the checkpoint itself
    module = Net()
    trainer = trainer_for({}, [Telling()], max_epochs=6)
    trainer.fit(module, **loaders("shuffled"), ckpt_path=PATH if PATH.exists() else None)
    print("hash", hash_tensors(module.state_dict().values()), "steps", len(module.losses), flush=True)


if __name__ == "__main__":
    main()
