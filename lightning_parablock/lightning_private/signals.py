"""The handlers of SIGTERM and of SLURM's requeue signal."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.lightning_private.instances import replace_method

log = logging.getLogger(__name__)

_EVALUATING = (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING)


def take_signals(trainer: Trainer, note: Callable[[int], bool]) -> None:
    """Replace both handlers, which the trainer registers later.

    Lightning broadcasts and saves inside its handlers, in the middle of a batch. Without this, each client would save
    at a step of its own, or wait for others that do not come.

    Args:
        trainer: The trainer.
        note: Receives the signal and returns whether it will be obeyed. Otherwise, SIGTERM ends the fit after the
            batch; it ends validate, test and predict, which have nothing to save, at once with a SIGTERMException.
    """
    connector = _connector(trainer)

    def note_sigterm(signum: Any, _: Any) -> None:
        launcher = trainer.strategy.launcher
        if not connector.received_sigterm and launcher is not None:
            launcher.kill(signum)
        connector.received_sigterm = connector.received_sigterm or not note(signum)
        function = trainer.state.fn
        # Their loops do not look at `received_sigterm`, and the next fit clears it.
        if function is not None and function in _EVALUATING and trainer.state.status == TrainerStatus.RUNNING:
            log.warning("parablock: SIGTERM: %s ends here", function.value)
            raise SIGTERMException(128 + signum)  # the exit code by convention

    def note_slurm(signum: Any, _: Any) -> None:
        note(signum)

    replace_method(connector, "_sigterm_notifier_fn", note_sigterm)
    replace_method(connector, "_slurm_sigusr_handler_fn", note_slurm)


def mark_terminated(trainer: Trainer) -> None:
    """Let ``trainer.received_sigterm`` be True, as if Lightning's own handler had received SIGTERM.

    Without this, hooks that run while the fit ends would read False there.
    """
    _connector(trainer).received_sigterm = True


def save_and_requeue(trainer: Trainer, signum: int, choose_path: Callable[[str], str]) -> None:
    """Save a checkpoint and let SLURM requeue the job, as Lightning's own handler does.

    Without this, every rank would choose the number of the file by what is on its own disk.

    Args:
        trainer: The trainer.
        signum: The signal that asked for it.
        choose_path: Receives the path of this rank and returns that of all ranks; collective.
    """
    connector = _connector(trainer)
    files: Any = trainer._checkpoint_connector  # pyright: ignore[reportPrivateUsage]

    def hpc_save_path(folder: str) -> str:
        return choose_path(type(files).hpc_save_path(folder))

    replace_method(files, "hpc_save_path", hpc_save_path)
    try:
        type(connector)._slurm_sigusr_handler_fn(connector, signum, None)
    finally:
        del files.hpc_save_path


def _connector(trainer: Trainer) -> Any:
    return trainer._signal_connector  # pyright: ignore[reportPrivateUsage]
