"""Freezes everything but the block of the round, and tells the strategy where the trainer stands.

The strategy puts this callback first, so that at the end of a training batch the block has been switched before any
other callback validates or saves.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from typing_extensions import override


class Rounds(Protocol):
    """What this callback needs of the strategy."""

    def start_rounds(self) -> list[nn.Parameter]:
        """Begin the first round; returns the parameters of its block."""
        ...

    def after_batch(self) -> list[nn.Parameter] | None:
        """Take note of a batch; returns the next block's parameters where a turn has ended, else None."""
        ...

    def finish_rounds(self) -> None:
        """Drain."""
        ...

    def rescue(self, exception: BaseException) -> None:
        """The run fails: keep the committed model."""
        ...


class BlockFreezer(Callback):
    """Sets ``requires_grad`` so that only the current block trains; gives the user's flags back at the end.

    Gradients of frozen parameters are None, not zero: an optimizer moves a parameter by its momentum or weight decay
    even where the gradient is zero.

    Args:
        rounds: The strategy.
    """

    def __init__(self, rounds: Rounds) -> None:
        self._rounds = rounds
        self._trainable: list[nn.Parameter] = []

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not earlier: an optimizer that filters by requires_grad must have seen every parameter.
        self._trainable = [p for p in pl_module.parameters() if p.requires_grad]
        self._train_only(self._rounds.start_rounds())

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        block = self._rounds.after_batch()
        if block is not None:
            self._train_only(block)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._rounds.finish_rounds()
        self.thaw()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._rounds.rescue(exception)  # before other callbacks save: a checkpoint that waits for peers would hang
        self.thaw()

    def thaw(self) -> None:
        """Give the ``requires_grad`` flags back as they were before training."""
        for parameter in self._trainable:
            parameter.requires_grad_(True)
            parameter.grad = None
        self._trainable = []

    def _train_only(self, block: Sequence[nn.Parameter]) -> None:
        chosen = {id(parameter) for parameter in block}
        for parameter in self._trainable:
            parameter.requires_grad_(id(parameter) in chosen)
            parameter.grad = None
