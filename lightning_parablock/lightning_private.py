"""The places where Lightning's own behaviour is replaced on the trainer's instances, and why.

Each is guarded, so that a Lightning version without the private attribute goes on unchanged.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import RandomSampler

from lightning_parablock.errors import DataError
from lightning_parablock.loading.lengths import length_of
from lightning_parablock.random_state import RandomState, capture, restore

log = logging.getLogger(__name__)

_EVALUATING = (TrainerFn.VALIDATING, TrainerFn.TESTING, TrainerFn.PREDICTING)


def silence_batch_broadcasts(trainer: Trainer) -> None:
    """Lightning broadcasts a flag from rank 0 on every batch, which ties each client to the slowest."""
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        epoch_loop._broadcast_sigterm_tensor = lambda: None


def take_signals(trainer: Trainer, note: Callable[[int], bool]) -> None:
    """Lightning broadcasts and saves in the handlers of SIGTERM and of SLURM's signal, in the middle of a batch.

    Args:
        trainer: Whose handlers these are; they are registered later.
        note: Told the signal; returns whether it will be obeyed. Where it is not, SIGTERM ends the fit after the batch;
            validate, test and predict, which have nothing to save, it ends at once, by a SIGTERMException.
    """
    connector: Any = trainer._signal_connector  # pyright: ignore[reportPrivateUsage]
    if hasattr(connector, "_sigterm_notifier_fn"):

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

        connector._sigterm_notifier_fn = note_sigterm
    if hasattr(connector, "_slurm_sigusr_handler_fn"):

        def note_slurm(signum: Any, _: Any) -> None:
            note(signum)

        connector._slurm_sigusr_handler_fn = note_slurm


def act_between_batches(trainer: Trainer, act: Callable[[], None]) -> None:
    """Call ``act`` where a batch is over and validation with it, after every hook: the best moment to save.

    Args:
        trainer: Whose fit it is.
        act: Called on every rank after the same batches.
    """
    epoch_loop: Any = trainer.fit_loop.epoch_loop

    def on_advance_end(*args: Any) -> None:
        type(epoch_loop).on_advance_end(epoch_loop, *args)
        act()

    epoch_loop.on_advance_end = on_advance_end


def isolate_validation(trainer: Trainer, note: Callable[[RandomState | None], None]) -> None:
    """Validation draws random numbers (a data loader's seed, for one); the training must not notice.

    Args:
        trainer: Whose fit validates.
        note: Told the training's random state while validation has its own, for a checkpoint that is saved meanwhile.
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

    # The second opens the validation data again where a resumed fit goes on behind a validation.
    for name in ("run", "increment_progress_to_evaluation_end"):
        if hasattr(val_loop, name):
            setattr(val_loop, name, isolated(getattr(type(val_loop), name)))


def finish_unstarted_fit(trainer: Trainer, finish: Callable[[], None]) -> None:
    """A fit that goes on from its own end makes no step and calls no hook in which what was in flight could be merged.

    Args:
        trainer: Whose fit it is.
        finish: Called whenever the loop of training is over, also where it has not begun.
    """
    fit_loop: Any = trainer.fit_loop

    def run() -> None:
        type(fit_loop).run(fit_loop)
        finish()

    fit_loop.run = run


def share_monitored_values(trainer: Trainer, from_first_rank: Callable[[Any], Any]) -> None:
    """Let every ModelCheckpoint decide and name its files by the metrics of the first rank.

    Where a metric is each client's own, they would keep different checkpoints, each with a part of the state.

    Args:
        trainer: Whose callbacks these are.
        from_first_rank: The first rank's value; collective.
    """
    for callback in _model_checkpoints(trainer):
        if hasattr(callback, "_monitor_candidates"):
            _share_values(callback, from_first_rank)


def unshare_monitored_values(trainer: Trainer) -> None:
    """Undo :func:`share_monitored_values`: a callback may be used with another trainer."""
    for callback in _model_checkpoints(trainer):
        callback.__dict__.pop("_monitor_candidates", None)


def _model_checkpoints(trainer: Trainer) -> list[Any]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]


def _share_values(callback: Any, from_first_rank: Callable[[Any], Any]) -> None:
    warned = set[str]()

    def monitor_candidates(trainer: Trainer) -> dict[str, Any]:
        own = {
            name: value.cpu() if isinstance(value, Tensor) else value
            for name, value in type(callback)._monitor_candidates(callback, trainer).items()
        }
        shared: dict[str, Any] = from_first_rank(own)
        name = callback.monitor
        if name in own and name in shared and not _equal(own[name], shared[name]) and name not in warned:
            warned.add(name)
            log.warning(
                "parablock: ModelCheckpoint monitors %s, of which each client has a value of its own: the first "
                "client's decides; log it with sync_dist=True to use the mean",
                name,
            )
        return shared

    callback._monitor_candidates = monitor_candidates


def _equal(one: Any, other: Any) -> bool:
    values = (torch.as_tensor(value, dtype=torch.float64) for value in (one, other))
    return torch.allclose(*values, rtol=0, atol=0, equal_nan=True)


def name_empty_data(trainer: Trainer, who: Callable[[], str]) -> None:
    """A data set without rows that a loader shuffles fails in PyTorch, which names neither the client nor the data.

    Args:
        trainer: Whose loops request loaders.
        who: Gives this rank's client in words.
    """

    def named(loop: Any) -> Callable[[], None]:
        def setup_data() -> None:
            try:
                type(loop).setup_data(loop)
            except ValueError as error:
                if not _comes_from_no_rows(error):
                    raise
                stage = trainer.state.stage
                raise DataError(
                    f"the {stage.value if stage is not None else ''} data of {who()} have 0 rows, in a loader that "
                    "shuffles; every client needs at least one row"
                ) from error

        return setup_data

    fit_loop: Any = trainer.fit_loop
    for loop in (
        fit_loop,
        fit_loop.epoch_loop.val_loop,
        trainer.validate_loop,
        trainer.test_loop,
        trainer.predict_loop,
    ):
        if hasattr(loop, "setup_data"):
            loop.setup_data = named(loop)


def _comes_from_no_rows(error: ValueError) -> bool:
    """Whether the error was raised by a RandomSampler over an empty data set."""
    last = error.__traceback__
    while last is not None and last.tb_next is not None:
        last = last.tb_next
    sampler = None if last is None else last.tb_frame.f_locals.get("self")
    return isinstance(sampler, RandomSampler) and length_of(sampler.data_source) == 0


def silence_loader_warning() -> None:
    """Lightning warns of a loader that cannot be resumed; this strategy brings every loader to where it stood."""
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")


def batches_fetched_ahead(trainer: Trainer) -> int:
    """Batches that the training loaders have yielded and no step has trained on: one, where they have no length.

    Without it a resumed run would skip that batch.
    """
    return len(getattr(trainer.fit_loop._data_fetcher, "batches", ()))  # pyright: ignore[reportPrivateUsage]


def take_sampler_flag(trainer: Trainer) -> bool:
    """Whether the user left ``use_distributed_sampler`` on; off afterwards: this strategy cuts by a rule of its own."""
    connector = trainer._accelerator_connector  # pyright: ignore[reportPrivateUsage]
    flag, connector.use_distributed_sampler = connector.use_distributed_sampler, False
    return flag
