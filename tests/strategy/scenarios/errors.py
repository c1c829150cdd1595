"""One rank of the bad inputs that test_errors.py starts: each must raise before training; what it raised is printed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.callbacks import BackboneFinetuning
from torch import Tensor, nn
from torch.utils.data import DataLoader, WeightedRandomSampler

from lightning_parablock.errors import ConfigurationError
from tests.strategy.scenarios.fit import RANK, TASK, quiet_trainer, strategy
from tests.support.here import SCRATCH
from tests.support.lightning_run import Steps, TaskModule
from tests.tasks import adamw_default


class Never(TaskModule):
    """Training has not started when the error comes."""

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        raise AssertionError("a training step was made")


def attempt(
    used: Any = None, module: LightningModule | None = None, ckpt_path: str | None = None, **options: Any
) -> None:
    """A fit that must not get far."""
    trainer = quiet_trainer(used or strategy(), use_distributed_sampler=False, **options)
    trainer.fit(module or Never(TASK, adamw_default), DataLoader(Steps(8, RANK), batch_size=1), ckpt_path=ckpt_path)


def with_optimizer(make: Callable[[list[nn.Parameter]], Any]) -> None:
    """The user's configure_optimizers."""
    attempt(module=Never(TASK, make))


def manual() -> None:
    """Manual optimization."""
    module = Never(TASK, adamw_default)
    module.automatic_optimization = False
    attempt(module=module)


def half() -> None:
    """A float16 model."""
    attempt(module=Never(TASK, adamw_default).to(torch.float16))


def other_versions() -> None:
    """Rank 1 has another torch."""
    versions = {"torch": f"2.{RANK}"}
    with mock.patch("lightning_parablock.strategy.parablock.versions_here", return_value=versions):
        attempt()


def no_checkpoint() -> None:
    """A text file is given as a checkpoint."""
    path = SCRATCH / f"no{RANK}.ckpt"
    path.write_text("this is no checkpoint")
    attempt(ckpt_path=str(path))


def with_loader(loader: DataLoader[Any]) -> None:
    """The same loader on every rank, and Lightning's default about samplers."""
    quiet_trainer(strategy()).fit(Never(TASK, adamw_default), loader)


def own_sampler() -> None:
    """A sampler that cannot be cut."""
    data = Steps(8, client=0)
    with_loader(DataLoader(data, sampler=WeightedRandomSampler([1.0] * 8, 8)))


def other_buffers() -> None:
    """A buffer is longer on rank 1."""
    module = Never(TASK, adamw_default)
    module.register_buffer("memory", torch.zeros(1 + RANK))
    attempt(module=module)


def one_validates() -> None:
    """Averaging buffers for a validation that rank 1 does not make."""
    trainer = quiet_trainer(strategy(buffers="average"), use_distributed_sampler=False)
    loader = DataLoader(Steps(8, RANK), batch_size=1)
    trainer.fit(Never(TASK, adamw_default), loader, loader if RANK == 0 else None)


def timed_validation() -> None:
    """Averaging buffers for validations that come by each client's own clock."""
    attempt(strategy(buffers="average"), check_val_every_n_epoch=None, val_check_interval="00:00:01:00")


CASES: dict[str, Callable[[], None]] = {
    "settings": lambda: attempt(strategy(local_steps=4 + RANK)),
    "versions": other_versions,
    "length": lambda: attempt(max_steps=4 + RANK),
    "no match": lambda: attempt(strategy(blocks=["nowhere"])),
    "overlap": lambda: attempt(strategy(blocks=["model", "layers"])),
    "unmatched": lambda: attempt(strategy(blocks=["layers"])),
    "too many blocks": lambda: attempt(strategy(blocks=1000)),
    "float16": half,
    "manual": manual,
    "two optimizers": lambda: with_optimizer(lambda p: [torch.optim.SGD(p[:3], lr=1), torch.optim.SGD(p[3:], lr=1)]),
    "LBFGS": lambda: with_optimizer(torch.optim.LBFGS),
    "Adagrad": lambda: with_optimizer(torch.optim.Adagrad),
    "left out": lambda: with_optimizer(lambda p: torch.optim.SGD(p[:-1], lr=1)),
    "finetuning": lambda: attempt(callbacks=[BackboneFinetuning()]),
    "no checkpoint": no_checkpoint,
    "own sampler": own_sampler,
    "other buffers": other_buffers,
    "one validates": one_validates,
    "other validations": lambda: attempt(strategy(buffers="average"), val_check_interval=2 + RANK),
    "timed validation": timed_validation,
    "too few samples": lambda: with_loader(DataLoader(Steps(1, client=0))),
}


def refused(name: str) -> Callable[[], None]:
    """A scenario: print what was raised, which must be an error of the package."""

    def scenario() -> None:
        try:
            CASES[name]()
        except ConfigurationError as error:
            print(f"REFUSED {name}: {error}", flush=True)
        else:
            raise AssertionError("it was not refused")

    return scenario


SCENARIOS = {name: refused(name) for name in CASES}
