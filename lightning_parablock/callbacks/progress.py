"""A progress bar for rounds: a live bar on a terminal, one line per round elsewhere."""

from __future__ import annotations

import math
import time
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import RichProgressBar
from rich.console import Console
from typing_extensions import override

from lightning_parablock.callbacks.gather import NewRecords
from lightning_parablock.callbacks.presence import sites_that_are_in
from lightning_parablock.lightning_private.facts import refresh_metrics
from lightning_parablock.records import RoundRecord
from lightning_parablock.system.units import readable_bytes, readable_number, readable_s


class RoundProgressBar(RichProgressBar):
    """Shows the newest finished round, counted from 0, its block, and what this rank's clients have exchanged so far.

    Exposed seconds are those in which this rank was idle for an exchange, summed over its rounds so far, as in the
    table at the end. The first rank shows a bar; where sites have names, every site does. In an elastic run it also
    shows how many of all sites that the run has ever had are members, and which.

    Args:
        refresh_rate: Redraws per second of the live bar.
        lines: Print one line per finished round instead of the live bar; None does so if the output is not a terminal
            (a log file, a pipe).
    """

    def __init__(self, refresh_rate: int = 10, lines: bool | None = None) -> None:
        super().__init__(refresh_rate=refresh_rate, leave=True)
        self._lines = not Console().is_terminal if lines is None else lines
        self._new = NewRecords()
        self._newest: RoundRecord | None = None
        self._exchanged_bytes, self._exposed_s = 0, 0.0
        self._site: str | None = None
        self._started_s = 0.0
        self._silenced = False

    @property
    @override
    def is_enabled(self) -> bool:
        return super().is_enabled and not self._lines

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        sites: tuple[str, ...] = getattr(trainer.strategy, "site_names", ())
        if sites:
            self._site = sites[trainer.global_rank]
            self._silenced = False
            self.enable()

    @override
    def disable(self) -> None:
        super().disable()
        self._silenced = True  # Lightning calls this on every rank but the first

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._new, self._newest, self._exchanged_bytes, self._exposed_s = NewRecords(), None, 0, 0.0
        self._started_s = time.monotonic()
        super().on_train_start(trainer, pl_module)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._take_records(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._take_records(trainer)
        refresh_metrics(self, trainer, pl_module)
        self.refresh(hard=True)
        super().on_train_end(trainer, pl_module)

    @override
    def get_metrics(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Any]:
        items = {k: v for k, v in super().get_metrics(trainer, pl_module).items() if k != "v_num"}
        readable = {k: readable_number(v, decimals=3) if isinstance(v, float) else v for k, v in items.items()}
        return {**self._facts(trainer), **readable}

    def _take_records(self, trainer: Trainer) -> None:
        for record in self._new.take(trainer.strategy):
            self._newest = record
            # If a rank hosts several clients, the record of the first one that trained has the bytes and the waits.
            self._exchanged_bytes += record.upload_bytes + record.download_bytes
            self._exposed_s += record.exposed_s
            if self._lines and not self._silenced:
                print(self._line(trainer), flush=True)

    def _facts(self, trainer: Trainer) -> dict[str, str]:
        site = {} if self._site is None else {"site": self._site}
        site |= sites_that_are_in(trainer.strategy)
        if self._newest is None:
            return site
        return {
            **site,
            "round": f"{self._newest.round} ({self._newest.round + 1}{_of_total(trainer)} done)",
            "block": self._newest.block,
            "exposed": f"{readable_s(self._exposed_s)} so far",
            "exchanged": readable_bytes(self._exchanged_bytes),
        }

    def _line(self, trainer: Trainer) -> str:
        facts = self._facts(trainer)
        loss = trainer.callback_metrics.get("train_loss")
        if loss is not None:
            facts["train_loss"] = readable_number(float(loss), decimals=3)
        elapsed_s = round(time.monotonic() - self._started_s)
        return "  ".join([f"[{elapsed_s // 60:02d}:{elapsed_s % 60:02d}]", *(f"{k} {v}" for k, v in facts.items())])


def _of_total(trainer: Trainer) -> str:
    """Text such as `` of 30`` if the number of rounds is known; otherwise empty."""
    strategy: Any = trainer.strategy
    steps = trainer.estimated_stepping_batches
    if not hasattr(strategy, "round_steps"):
        return ""
    limits = [strategy.settings.max_rounds, None if steps == float("inf") else math.ceil(steps / strategy.round_steps)]
    known = [limit for limit in limits if limit is not None]
    return f" of {min(known)}" if known else ""
