"""One rank of runs that client 1 ends badly in places where client 0 has nothing left to do: both must fail.

Several in one process: prints what each of them raised, and the exit code where that is what was raised.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from tests.strategy.trainer_toys import RANK, TASK, Do, K, run
from tests.support.lightning_run import TaskModule
from tests.tasks import adamw_default


def break_down(trainer: Trainer, module: LightningModule) -> None:
    """The fault of client 1."""
    if RANK == 1:
        raise ZeroDivisionError("client 1 is broken")


class Leaving(TaskModule):
    """Ends the program in the middle of the training."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if RANK == 1 and self.global_step == K + 1:
            sys.exit(0)
        return super().training_step(batch, batch_idx)


def at(hook: str) -> None:
    """Client 1 fails in a hook."""
    run(callbacks=[Do(**{hook: break_down})])


CASES = {hook: lambda hook=hook: at(hook) for hook in ("on_train_end", "on_fit_end", "teardown")} | {
    "sys.exit": lambda: run(Leaving(TASK, adamw_default)),
    "well": run,
}


def main() -> None:
    """Try every case."""
    torch.set_num_threads(1)
    for name, case in CASES.items():
        try:
            case()
        except BaseException as error:
            code = f" with code {error.code}" if isinstance(error, SystemExit) else ""
            print(f"RAISED {name}: {type(error).__name__}: {error}{code}", flush=True)
        else:
            print(f"FINISHED {name}", flush=True)
    os._exit(3)


if __name__ == "__main__":
    main()
