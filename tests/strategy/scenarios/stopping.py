"""One rank of the fits that test_stopping.py stops by signals: saved at a common step, resumed with the same bits."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import SLURMEnvironment
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.errors import PeerLostError
from tests.strategy.scenarios.resume import BATCHES, N_RANKS, RANK, SCRATCH, Net, loaders, trainer_for, weights, whole
from tests.support.scenarios import Scenario, spoiling
from tests.tasks import assert_same_bits


class Strikes(Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, signum: int, step: int, ranks: tuple[int, ...]) -> None:
        self.signum, self.step, self.ranks = signum, step, ranks

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        if RANK == 1:
            time.sleep(0.002)  # the clients are at different batches
        if trainer.global_step == self.step and RANK in self.ranks:
            os.kill(os.getpid(), self.signum)


def slurm_environment() -> dict[str, str]:
    return {
        "SLURM_JOB_ID": "7",
        "SLURM_JOB_NAME": "test",
        "SLURM_NTASKS": str(N_RANKS),
        "SLURM_NTASKS_PER_NODE": str(N_RANKS),
        "SLURM_PROCID": str(RANK),
        "SLURM_LOCALID": str(RANK),
        "SLURM_NODEID": "0",
        "SLURM_NODELIST": "localhost",
    }


@contextmanager
def slurm(folder: Path) -> Iterator[Path]:
    """SLURM's variables and a command ``scontrol`` that notes its arguments in a file."""
    called, stub = folder / f"called{RANK}", folder / f"bin{RANK}" / "scontrol"
    stub.parent.mkdir(parents=True)
    stub.write_text(f'#!/bin/sh\necho "$@" >> {called}\n')
    stub.chmod(0o755)
    path = f"{stub.parent}:{os.environ['PATH']}"
    with mock.patch.dict(os.environ, {**slurm_environment(), "PATH": path}):
        yield called


def resumed(path: Any, expected: Net, strategy: dict[str, Any] | None = None, **options: Any) -> None:
    module = Net()
    trainer_for(strategy or {}, [], **options).fit(module, **loaders("shuffled"), ckpt_path=path)
    assert 0 < len(module.losses) < len(expected.losses), len(module.losses)
    assert module.losses == expected.losses[-len(module.losses) :]
    assert_same_bits(weights(module), weights(expected))


def requeued(step: int, *ranks: int) -> Callable[[], None]:
    """A scenario: SLURM's signal reaches some of the tasks; the run goes on, and so does the requeued one."""

    def scenario() -> None:
        folder = SCRATCH / f"slurm{step}-{len(ranks)}"
        expected, module = whole({}), Net()
        with slurm(folder) as called:
            options: dict[str, Any] = {"plugins": [SLURMEnvironment()], "default_root_dir": str(folder)}
            trainer_for({}, [Strikes(signal.SIGUSR1, step, ranks)], **options).fit(module, **loaders("shuffled"))
            assert_same_bits(weights(module), weights(expected))
            assert [path.name for path in folder.glob("*.ckpt")] == ["hpc_ckpt_1.ckpt"]
            assert not called.exists() if RANK else called.read_text() == "requeue 7\n"
            dist.barrier()
            resumed(None, expected, **options)  # as the requeued job does, which is given no path

    return scenario


def ended(signum: int, step: int, *ranks: int) -> Callable[[], None]:
    """A scenario: some of the processes are told to end; all save, and the next run continues exactly."""
    raised: dict[int, type[BaseException]] = {signal.SIGINT: SystemExit, signal.SIGTERM: SIGTERMException}

    def scenario() -> None:
        folder = SCRATCH / f"ended{signum}-{step}-{len(ranks)}"
        path = folder / "stopped.ckpt"
        expected, error = whole({}), raised[signum] if RANK in ranks else PeerLostError
        said = None if RANK in ranks else rf"client {ranks[0]} .* by .*; all clients have saved at step \d+; .*{path}"
        with pytest.raises(error, match=said):
            strikes = Strikes(signum, step, ranks)
            trainer_for({}, [strikes], default_root_dir=str(folder)).fit(Net(), **loaders("shuffled"))
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        assert not list(folder.glob("rescued*"))
        dist.barrier()
        assert abs(torch.load(path, weights_only=True)["global_step"] - step) <= 12  # the other is some rounds ahead
        resumed(path, expected)

    return scenario


def ended_at_sites() -> None:
    """Sites have folders of their own: each saves its part there, and names it when the run continues."""
    folder, own = SCRATCH / "sites" / "ab"[RANK], {"site": "ab"[RANK]}
    expected = whole(own)
    with pytest.raises(SIGTERMException):
        strikes = Strikes(signal.SIGTERM, 13, (0, 1))
        trainer_for(own, [strikes], default_root_dir=str(folder)).fit(Net(), **loaders("shuffled"))
    dist.barrier()
    assert (folder / "stopped.ckpt").is_file() == (RANK == 0)
    (sidecar,) = folder.glob("stopped.ckpt.parablock/*/*")
    assert sidecar.name == f"rank0000{RANK}.pt"
    resumed(folder / "stopped.ckpt", expected, own)


class Sleeps(Callback):
    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        if trainer.global_step == 6 and RANK == 0:
            time.sleep(4)


@spoiling
def the_others_do_not_come() -> None:
    """A client is in a long batch: after the limit the other ends without it, and the weights are rescued.

    A thread is left in the collective to which one did not come.
    """
    with (
        mock.patch.dict("lightning_parablock.strategy.stopping.LIMITS_S", {signal.SIGINT: 1.0}),
        pytest.raises(SystemExit if RANK == 1 else PeerLostError),
    ):
        strikes = Strikes(signal.SIGINT, 6, (1,))
        trainer_for({}, [Sleeps(), strikes], default_root_dir=str(SCRATCH / "late")).fit(Net(), **loaders("shuffled"))
    if RANK == 0:
        assert [path.name for path in (SCRATCH / "late").iterdir()] == ["rescued.ckpt"]


LEAVES_THREADS = True  # those of the transport of each fit that is told to end

SCENARIOS: dict[str, Scenario] = {
    "SLURM's signal": requeued(10, 0, 1),
    "SLURM's signal, one task": requeued(7, 1),
    "Ctrl-C": ended(signal.SIGINT, 13, 0, 1),
    "Ctrl-C, one process": ended(signal.SIGINT, 6, 1),
    "Ctrl-C, the other process": ended(signal.SIGINT, 6, 0),
    "SIGTERM": ended(signal.SIGTERM, 14, 0, 1),
    "SIGTERM, one process": ended(signal.SIGTERM, 9, 0),
    **{f"at batch {step}": ended(signal.SIGTERM, step - 1, 0, 1) for step in (1, 5, BATCHES, BATCHES + 1)},
    "sites": ended_at_sites,
    "too late": the_others_do_not_come,
}
