"""The loops of a fit: what happens between batches, around validation and around data loaders."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from lightning.fabric.utilities.optimizer import _optimizers_to_device  # pyright: ignore[reportPrivateUsage]
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _PrefetchDataFetcher  # pyright: ignore[reportPrivateUsage]

from lightning_parablock.checks import require
from lightning_parablock.lightning_private.instances import replace_method
from lightning_parablock.random_state import RandomState, capture, restore


def silence_batch_broadcasts(trainer: Trainer) -> None:
    """Stop the broadcast of a flag from rank 0 at every batch.

    Without this, each client waits for rank 0 at every batch, and a slow link stalls the training.
    """
    replace_method(trainer.fit_loop.epoch_loop, "_broadcast_sigterm_tensor", lambda: None)


def act_between_batches(trainer: Trainer, act: Callable[[], None]) -> None:
    """Call ``act`` when a batch and its validation are over, after every hook.

    No public hook comes after validation, so without this a checkpoint saved because of a signal would fall between a
    batch and its validation.

    Args:
        trainer: The trainer of the fit.
        act: Called on every rank after the same batches.
    """
    epoch_loop: Any = trainer.fit_loop.epoch_loop

    def on_advance_end(*args: Any) -> None:
        type(epoch_loop).on_advance_end(epoch_loop, *args)
        act()

    replace_method(epoch_loop, "on_advance_end", on_advance_end)


def isolate_validation(trainer: Trainer, note: Callable[[RandomState | None], None]) -> None:
    """Give validation a random state of its own.

    Validation draws random numbers (a data loader's seed, for one). Without this, training would depend on when it
    validates, and a resumed run would not repeat the original to the bit.

    Args:
        trainer: The trainer of the fit.
        note: Receives the training's random state while validation runs, for a checkpoint saved meanwhile; then None.
    """
    val_loop: Any = trainer.fit_loop.epoch_loop.val_loop

    def isolated(method: Callable[[Any], Any]) -> Callable[[], Any]:
        def call() -> Any:
            training = capture()
            note(training)
            try:
                return method(val_loop)
            finally:
                restore(training)
                note(None)

        return call

    # The second one opens the validation data again where a fit resumes right after a validation.
    for name in ("run", "increment_progress_to_evaluation_end"):
        replace_method(val_loop, name, isolated(getattr(type(val_loop), name)))


def finish_unstarted_fit(trainer: Trainer, finish: Callable[[], None]) -> None:
    """Call ``finish`` after the training loop even where it had nothing left to train.

    A fit resumed from its own end takes no step and calls no hook of training, so without this the exchanges that the
    checkpoint holds in flight would never be merged.

    Args:
        trainer: The trainer of the fit.
        finish: Called whenever the training loop is over, also where it has not begun.
    """
    fit_loop: Any = trainer.fit_loop

    def run() -> None:
        type(fit_loop).run(fit_loop)
        finish()

    replace_method(fit_loop, "run", run)


def wrap_data_setup(trainer: Trainer, wrap: Callable[[Callable[[], None]], None]) -> None:
    """Let ``wrap`` call the set-up of every loop's data.

    A sampler fails while Lightning sets up the data, outside of any hook, so without this an error there could not name
    the client.

    Args:
        trainer: The trainer whose loops request data loaders.
        wrap: Receives the set-up of one loop's data and calls it.
    """

    fit_loop: Any = trainer.fit_loop
    for loop in (
        fit_loop,
        fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
        trainer.predict_loop,
    ):
        replace_method(loop, "setup_data", partial(wrap, partial(type(loop).setup_data, loop)))


def training_loaders(trainer: Trainer) -> list[Any]:
    """The training loaders that the trainer iterates now or will iterate next; empty before they are made.

    Lightning may make them several times before it iterates them once. Without this, a loader that has been replaced
    could be taken for the one that trains.
    """
    combined = trainer.fit_loop._combined_loader  # pyright: ignore[reportPrivateUsage]
    return combined.flattened if combined is not None else []


def renew_epoch_length(trainer: Trainer) -> None:
    """Ask the training loaders for their lengths again, while the first epoch is under way.

    Lightning asks once, when it sets up the data. Without this, the epoch would end, and validation come, where they
    would with the number of local steps that was assumed then.

    Args:
        trainer: The trainer, inside of its first training epoch; its loaders know their lengths.

    Raises:
        ConfigurationError: ``val_check_interval`` is longer than the epoch.
    """
    fit_loop: Any = trainer.fit_loop
    combined, fetcher = fit_loop._combined_loader, fit_loop._data_fetcher
    limit: Any = trainer.limit_train_batches
    lengths = [len(loader) for loader in combined.flattened]
    # As Lightning reads it: a whole number of batches, or a share of them.
    limits = [min(length, limit) if isinstance(limit, int) else int(length * limit) for length in lengths]
    combined.limits[:] = limits  # in place: the iteration under way has the same list
    fetcher.length = fit_loop.max_batches = len(combined)
    fetcher.done = fit_loop.epoch_loop.batch_progress.is_last_batch = fetcher.fetched >= fetcher.length
    interval: Any = trainer.val_check_interval
    if isinstance(interval, float):
        trainer.val_check_batch = max(1, int(fit_loop.max_batches * interval))
    elif isinstance(interval, int) and trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches:
        require(
            interval <= fit_loop.max_batches,
            f"val_check_interval={interval} is more than the {fit_loop.max_batches} batches that an epoch has with the "
            "local steps on which the clients have agreed; lower it, set check_val_every_n_epoch=None, or give "
            "local_steps a number",
        )


def batches_fetched_ahead(trainer: Trainer) -> int:
    """Number of batches that Lightning has fetched and not trained on: one, where the loaders have no length.

    Without this, a resumed run would skip that batch.
    """
    fetcher = trainer.fit_loop._data_fetcher  # pyright: ignore[reportPrivateUsage]
    return len(fetcher.batches) if isinstance(fetcher, _PrefetchDataFetcher) else 0


def optimizers_to_device(optimizers: Any, device: Any) -> None:
    """Move the state of optimizers to the model's device, as Lightning's own strategies do at the end of their set-up.

    Without this, state that an optimizer creates in its constructor could be in host memory, and gradients on the GPU.
    """
    _optimizers_to_device(optimizers, device)
