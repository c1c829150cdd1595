"""The batches at which Lightning's collectives run, and the options that must therefore be the same on all ranks.

Validation, early stopping, checkpoints and time limits run collectives at certain batches. A rank with other options
would enter one that no other rank enters, and all ranks would wait.
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
from lightning_parablock.lightning_private.facts import meeting_options, saves_by_time

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
    """One printable value per option that counts batches or triggers a collective; learning rates may differ."""
    facts = {f"Trainer({name})": str(getattr(trainer, name)) for name in _OPTIONS}
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    meeting = [_described(callback) for callback in callbacks if isinstance(callback, _MEETING)]
    described = "; ".join(sorted(meeting)) or "none"
    return {
        **facts,
        "validation during training": "yes" if trainer.enable_validation else "no",
        "the list of callbacks": described,
    }


def keep_time_by_rounds(trainer: Trainer, a_round_begins: Callable[[], bool]) -> Callable[[], None]:
    """Make Lightning's Timer (``max_time``) and timed checkpoints read the clock of rank 0 once per round.

    Left alone they broadcast at every batch, which ties each client to rank 0 at every step.

    Returns:
        What undoes it: a callback may be used with another trainer.
    """
    callbacks: list[Any] = trainer.callbacks  # type: ignore[attr-defined]
    looking = [callback for callback in callbacks if isinstance(callback, Timer) or saves_by_time(callback)]
    for callback in looking:
        _look_once_a_round(callback, a_round_begins)

    def undo() -> None:
        for callback in looking:
            vars(callback).pop("on_train_batch_end", None)

    return undo


def _look_once_a_round(callback: Any, a_round_begins: Callable[[], bool]) -> None:
    look = type(callback).on_train_batch_end

    def on_train_batch_end(*args: Any, **kwargs: Any) -> None:
        if a_round_begins():
            look(callback, *args, **kwargs)

    callback.on_train_batch_end = on_train_batch_end


def _described(callback: Callback) -> str:
    own = {
        ClientSight: ("shared", "monitor"),
        EarlyStopping: ("monitor",),
        GradientAccumulationScheduler: ("scheduling",),
        ModelCheckpoint: ("monitor", "save_top_k", "save_last"),
    }
    names = next((names for kind, names in own.items() if isinstance(callback, kind)), ())
    values = {**{name: getattr(callback, name) for name in names}, **meeting_options(callback)}
    return f"{type(callback).__name__}({', '.join(f'{name}={value!r}' for name, value in values.items())})"
