"""Runs that client 1 ends badly: in a training step, by another weight, and where client 0 has nothing left to do."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.utils.data import DataLoader

from lightning_parablock.federation.rounds import RoundEngine
from tests.strategy.scenarios import fit as fits
from tests.strategy.scenarios.toys import RANK, TASK, Do, K, run
from tests.support.here import N_RANKS
from tests.support.lightning_run import Steps, TaskModule, fit
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


def every_case() -> None:
    """Prints what each of several fits in one process raised, and the exit code where that is what was raised."""
    for name, case in CASES.items():
        try:
            case()
        except BaseException as error:
            code = f" with code {error.code}" if isinstance(error, SystemExit) else ""
            print(f"RAISED {name}: {type(error).__name__}: {error}{code}", flush=True)
        else:
            print(f"FINISHED {name}", flush=True)
    os._exit(3)


class Failing(TaskModule):
    """Breaks on rank 1, in its third round."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        if RANK == 1 and batch_idx == 2 * K + 1:
            raise ZeroDivisionError("the data of this client are broken")
        return super().training_step(batch, batch_idx)


def failing() -> None:
    trainer = fits.quiet_trainer(fits.strategy(), use_distributed_sampler=False)
    trainer.fit(Failing(fits.TASK, adamw_default), DataLoader(Steps(fits.STEPS, RANK), batch_size=1))


finish = RoundEngine.finish


def tampered(engine: RoundEngine) -> None:
    """Drain, then move one scalar of rank 1 by its last bit."""
    finish(engine)
    if RANK == 1:
        value = engine.flat.pack(0)
        value[3] = torch.nextafter(value[3], torch.tensor(float("inf")))
        engine.flat.unpack(0, value)


def diverging() -> None:
    """The second client's weights are changed by one bit just before the final check."""
    with mock.patch.object(RoundEngine, "finish", tampered):
        fit(fits.TASK, fits.strategy(), RANK, 8, devices=N_RANKS)
    print("fitted")


ALONE: dict[str, Callable[[], None]] = {"every case": every_case, "failing": failing, "diverging": diverging}
