"""What clients share besides their deltas: what the option ``shared`` says, or less."""

from __future__ import annotations

from collections.abc import Sequence
from typing import get_args

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks import ClientSight, Timeline
from lightning_parablock.callbacks.sight import Shared
from lightning_parablock.errors import ConfigurationError


def refuse_more_shared(shared: Shared, callbacks: Sequence[Callback]) -> None:
    """Refuse callbacks that tell other clients more than the option allows.

    Args:
        shared: The value of the option.
        callbacks: Those of the run.

    Raises:
        ConfigurationError: names the callback, and what to do.
    """
    strict = get_args(Shared)
    for one in callbacks:
        if isinstance(one, ClientSight) and strict.index(one.shared) < strict.index(shared):
            raise ConfigurationError(
                f"--shared {shared}, but the ClientSight among the callbacks has shared={one.shared!r}, which tells "
                f"more: give it shared: {shared}, too"
            )
        if isinstance(one, Timeline) and not one.own_only and shared != "clients":
            raise ConfigurationError(
                f"--shared {shared}, but the Timeline among the callbacks gathers the rounds of every client: give it "
                "own_only: true, or leave it out, since the command line has one"
            )


class SharesNoMore(Callback):
    """Looks again once the callbacks are there that a module brings along; they replace others of the same class.

    Args:
        shared: The value of the option.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared: Shared = shared

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
        refuse_more_shared(self._shared, callbacks)
