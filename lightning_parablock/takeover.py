"""The four places where Lightning's own behaviour is replaced on the trainer's instances, and why.

Each is guarded, so that a Lightning version without the private attribute goes on unchanged.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from lightning.pytorch import Trainer

from lightning_parablock.random_state import RandomState, capture, restore


def silence_batch_broadcasts(trainer: Trainer) -> None:
    """Lightning broadcasts a flag from rank 0 on every batch, which ties each client to the slowest; SIGTERM likewise.

    Each rank then obeys its own SIGTERM at the end of its batch.
    """
    epoch_loop: Any = trainer.fit_loop.epoch_loop
    if hasattr(epoch_loop, "_broadcast_sigterm_tensor"):
        epoch_loop._broadcast_sigterm_tensor = lambda: None
    connector: Any = trainer._signal_connector  # pyright: ignore[reportPrivateUsage]
    if hasattr(connector, "_sigterm_notifier_fn"):

        def note_sigterm(signum: Any, _: Any) -> None:
            launcher = trainer.strategy.launcher
            if not connector.received_sigterm and launcher is not None:
                launcher.kill(signum)
            connector.received_sigterm = True

        connector._sigterm_notifier_fn = note_sigterm


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


def silence_loader_warning() -> None:
    """Lightning warns of a loader that cannot be resumed; this strategy brings every loader to where it stood."""
    warnings.filterwarnings("ignore", message="You're resuming from a checkpoint that ended before the epoch ended")


def take_sampler_flag(trainer: Trainer) -> bool:
    """Whether the user left ``use_distributed_sampler`` on; off afterwards: this strategy cuts by a rule of its own."""
    connector = trainer._accelerator_connector  # pyright: ignore[reportPrivateUsage]
    flag, connector.use_distributed_sampler = connector.use_distributed_sampler, False
    return flag
