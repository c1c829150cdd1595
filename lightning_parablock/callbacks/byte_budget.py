"""A limit on the bytes that a client sends in training."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.rank_zero import rank_zero_info
from typing_extensions import override

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.planning.traffic import carried_scalars, rounds_within


class ByteBudget(Callback):
    """Ends fit after as many rounds as the byte budget allows.

    The number of rounds depends only on the blocks, their order and the compression, and is known before the first
    step: every client ends at the same round, and so does every repetition of the run, whatever the network does.

    Args:
        budget_bytes: Bytes that a client may send in exchanges, message headers included; the mean over the clients.
            With compression "low_rank" every visit of a block counts with the larger of its two factors.

    Raises:
        ConfigurationError: before the first step: the strategy is not this package's, there is only one client, the
            budget is less than the first round needs, not all clients train one known block in every round, or the
            compression is open until round 0.
    """

    def __init__(self, budget_bytes: int) -> None:
        if budget_bytes < 1:
            raise ConfigurationError(f"budget_bytes must be >= 1, got {budget_bytes}")
        self._budget_bytes = budget_bytes
        self._rounds = 0
        self._is_set = False

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        strategy: Any = trainer.strategy
        if not hasattr(strategy, "round_records"):
            raise ConfigurationError("a budget of bytes needs a ParaBlock strategy: only its exchanges are counted")
        settings = strategy.settings
        if strategy.takes_turns or settings.block_order in ("cyclic", "importance"):
            raise ConfigurationError(
                "a budget of bytes counts rounds in which every client trains one known block; with clients, cohort or "
                f"block_order={settings.block_order!r} set max_rounds instead"
            )
        if "compression" in settings.pending:
            raise ConfigurationError(
                "a budget of bytes must not depend on what the clients measure, and with compression='auto' it would; "
                "give compression a name"
            )
        carried = [carried_scalars(block.numel, block.shapes, settings.compression) for block in strategy.blocks]
        self._rounds = rounds_within(self._budget_bytes, carried, trainer.world_size, settings)
        self._is_set = False
        self._set_last_step(trainer)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._set_last_step(trainer)

    def _set_last_step(self, trainer: Trainer) -> None:
        """Called as soon as K is known, which with local_steps="auto" is during round 0."""
        settings: Any = trainer.strategy.settings  # type: ignore[attr-defined]
        if self._is_set or settings.pending:
            return
        self._is_set = True
        steps = self._rounds * settings.local_steps
        if trainer.max_steps < 0 or steps < trainer.max_steps:
            trainer.fit_loop.epoch_loop.max_steps = steps
        rank_zero_info(f"parablock: {self._budget_bytes:,} bytes per client are enough for {self._rounds} rounds")
