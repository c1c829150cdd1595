"""Options of a trainer and its callbacks, and what a module has logged, that have no public name."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint, RichProgressBar, Timer


def take_sampler_flag(trainer: Trainer) -> bool:
    """Whether the user left ``use_distributed_sampler`` on; off afterwards.

    Without this, Lightning would deal the rows of every data set among the ranks again, on top of the fixed shards.
    """
    connector: Any = trainer._accelerator_connector  # pyright: ignore[reportPrivateUsage]
    flag, connector.use_distributed_sampler = connector.use_distributed_sampler, False
    return flag


def synchronizes_batchnorm(trainer: Trainer) -> bool:
    """Whether ``Trainer(sync_batchnorm=True)`` was given.

    Without this, such a run would hang in its first forward pass instead of being refused.
    """
    connector: Any = trainer._accelerator_connector  # pyright: ignore[reportPrivateUsage]
    return connector._layer_sync is not None


def validates_by_time(trainer: Trainer) -> bool:
    """Whether ``val_check_interval`` is a time.

    ``trainer.val_check_interval`` does not tell. Without this, clients would validate at different batches.
    """
    flags: Any = trainer  # its data connector sets the attribute, which no annotation declares
    return flags._val_check_time_interval is not None


def saves_by_time(callback: Callback) -> bool:
    """Whether a ModelCheckpoint saves by the clock (``train_time_interval``).

    Without this, it would broadcast at every batch, which ties each client to rank 0.
    """
    return isinstance(callback, ModelCheckpoint) and callback._train_time_interval is not None  # pyright: ignore[reportPrivateUsage]


def meeting_options(callback: Callback) -> dict[str, Any]:
    """Options of Lightning's own callbacks that decide at which batch their collectives come; empty for others.

    Without this, clients with different options would wait for each other instead of being refused by name.
    """
    names: dict[type[Callback], tuple[str, ...]] = {
        EarlyStopping: ("_check_on_train_epoch_end",),
        ModelCheckpoint: ("_every_n_train_steps", "_every_n_epochs", "_train_time_interval"),
        Timer: ("_duration", "_interval"),
    }
    own = next((names for kind, names in names.items() if isinstance(callback, kind)), ())
    return {name.lstrip("_"): getattr(callback, name) for name in own}


def logged_results(trainer: Trainer) -> list[Any]:
    """Entries that the module has logged in the loop that runs, with their sums and numbers of terms.

    ``trainer.callback_metrics`` has the values reduced over all ranks alone. Without this, a client could not tell its
    own share of a mean, nor could metrics that wait for absent ranks be refused.
    """
    results: Any = trainer._results  # pyright: ignore[reportPrivateUsage]
    return [] if results is None else list(results.values())


def refresh_metrics(bar: RichProgressBar, trainer: Trainer, module: Any) -> None:
    """Let a progress bar read its metrics now.

    Without this, the bar would end with the figures of the last but one round.
    """
    bar._update_metrics(trainer, module)  # pyright: ignore[reportPrivateUsage]
