"""Round records of all clients, gathered when training has ended and written as trace and picture."""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks.gather import folder_here, gather_objects, round_records
from lightning_parablock.callbacks.picture import draw_timeline
from lightning_parablock.callbacks.presence import Gap, gaps, lines_of
from lightning_parablock.callbacks.trace import chrome_trace
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.records import RoundRecord

log = logging.getLogger(__name__)


class Timeline(Callback):
    """Writes ``timeline.json`` (Chrome trace) and ``timeline.png`` at the end of fit.

    The first rank writes them; where sites have names, every site writes them to a subfolder with its name. In an
    elastic run, times in which a site was no member are marked; the rounds of a process that was lost are not known.

    Args:
        folder: Folder to write to; None for the trainer's log directory.
        own_only: Do not share the rounds between ranks: a rank that writes has only the rounds of its own clients.

    Attributes:
        own_only: See above.
        records: Rounds of all clients (or of this rank's own), on every rank, once fit has ended.
    """

    def __init__(self, folder: str | None = None, own_only: bool = False) -> None:
        self._folder, self.own_only = folder, own_only
        self.records: list[RoundRecord] = []

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the drain, and never after an exception: Lightning skips this hook then, so no rank waits.
        own = round_records(trainer.strategy)
        per_rank = [own] if self.own_only else gather_objects(trainer.strategy, own)
        self.records = sorted((r for records in per_rank for r in records), key=lambda r: (r.round, r.client))
        folder = folder_here(trainer, self._folder)
        if folder is not None and self.records:
            end_s = max(record.exchange_end_s for record in self.records)
            self._write(folder, ClientNames.of(trainer.strategy), gaps(lines_of(trainer.strategy), end_s))

    def _write(self, folder: Path, names: ClientNames, gaps: Sequence[Gap]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "timeline.json").write_text(json.dumps(chrome_trace(self.records, names, gaps)), encoding="utf-8")
        try:
            draw_timeline(self.records, folder / "timeline.png", names, gaps)
        except ImportError as error:
            log.warning("timeline.png is not drawn: %s; pip install matplotlib", error)
