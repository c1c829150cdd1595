"""The three places where Lightning's own behaviour is replaced on the trainer's instances, and why.

Each is guarded, so that a Lightning version without the private attribute goes on unchanged.
"""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng


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


def isolate_validation(trainer: Trainer) -> None:
    """Validation draws random numbers (a data loader's seed, for one); the training must not notice."""
    val_loop: Any = trainer.fit_loop.epoch_loop.val_loop
    run = type(val_loop).run

    def run_isolated() -> Any:
        with isolate_rng():
            return run(val_loop)

    val_loop.run = run_isolated


def take_sampler_flag(trainer: Trainer) -> bool:
    """Whether the user left ``use_distributed_sampler`` on; off afterwards: this strategy cuts by a rule of its own."""
    connector = trainer._accelerator_connector  # pyright: ignore[reportPrivateUsage]
    flag, connector.use_distributed_sampler = connector.use_distributed_sampler, False
    return flag
