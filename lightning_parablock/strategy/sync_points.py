"""Where clients meet under Lightning, and what must therefore be the same on all of them.

Lightning's collectives come at certain batches: validation, early stopping, checkpoints, time limits. A client with
other options would meet nobody there, and everybody would wait.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    Timer,
)

from lightning_parablock.callbacks.sight import ClientSight

_OPTIONS = (
    "max_steps",
    "max_epochs",
    "min_steps",
    "min_epochs",
    "accumulate_grad_batches",
    "limit_train_batches",
    "limit_val_batches",
    "val_check_interval",
    "check_val_every_n_epoch",
    "num_sanity_val_steps",
    "overfit_batches",
    "fast_dev_run",
    "reload_dataloaders_every_n_epochs",
)
_MEETING = (ClientSight, EarlyStopping, GradientAccumulationScheduler, ModelCheckpoint, OnExceptionCheckpoint, Timer)


def meeting_facts(trainer: Trainer) -> dict[str, str]:
    """One printable value a thing by which batches are counted or clients meet; learning rates may differ."""
    facts = {f"Trainer({name})": str(getattr(trainer, name)) for name in _OPTIONS}
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    meeting = [_described(callback) for callback in callbacks if isinstance(callback, _MEETING)]
    described = "; ".join(sorted(meeting)) or "none"
    return {
        **facts,
        "validation during training": "yes" if trainer.enable_validation else "no",
        "the list of callbacks": described,
    }


def keep_time_by_rounds(trainer: Trainer, a_round_begins: Callable[[], bool]) -> None:
    """Let Lightning's Timer (``max_time``) and timed checkpoints look at the clock of rank 0 once a round.

    By themselves they broadcast at every batch, which ties each client to rank 0 at every step.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        saves_by_time = getattr(callback, "_train_time_interval", None) is not None
        if isinstance(callback, Timer) or (isinstance(callback, ModelCheckpoint) and saves_by_time):
            _look_once_a_round(callback, a_round_begins)


def _look_once_a_round(callback: Any, a_round_begins: Callable[[], bool]) -> None:
    look = type(callback).on_train_batch_end

    def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
        if a_round_begins():
            look(callback, *args, **kwargs)

    callback.on_train_batch_end = on_train_batch_end


def _described(callback: Callback) -> str:
    own = {
        ClientSight: ("shared", "_monitor"),
        EarlyStopping: ("monitor", "_check_on_train_epoch_end"),
        GradientAccumulationScheduler: ("scheduling",),
        ModelCheckpoint: (
            "monitor",
            "save_top_k",
            "save_last",
            "_every_n_train_steps",
            "_every_n_epochs",
            "_train_time_interval",
        ),
        Timer: ("_duration", "_interval"),
    }
    names = next((names for kind, names in own.items() if isinstance(callback, kind)), ())
    options = ", ".join(f"{name.lstrip('_')}={getattr(callback, name, None)!r}" for name in names)
    return f"{type(callback).__name__}({options})"
