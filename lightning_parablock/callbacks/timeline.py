"""Round records of all clients, gathered when training has ended and written as trace and picture."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from lightning_parablock.callbacks.gather import folder_here, gather_objects, round_records
from lightning_parablock.callbacks.picture import draw_timeline
from lightning_parablock.callbacks.trace import chrome_trace
from lightning_parablock.federation.names import ClientNames
from lightning_parablock.records import RoundRecord

log = logging.getLogger(__name__)


class Timeline(Callback):
    """Writes ``timeline.json`` (Chrome trace) and ``timeline.png`` at the end of fit.

    The first rank writes them; where sites have names, every site writes them to a subfolder with its name.

    Args:
        folder: Folder to write to; None for the trainer's log directory.
        own_only: Do not share the rounds between ranks: a rank that writes has only the rounds of its own clients.

    Attributes:
        records: Rounds of all clients (or of this rank's own), on every rank, once fit has ended.
    """

    def __init__(self, folder: str | None = None, own_only: bool = False) -> None:
        self._folder, self._own_only = folder, own_only
        self.records: list[RoundRecord] = []

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # After the drain, and never after an exception: Lightning skips this hook then, so no rank waits.
        own = round_records(trainer.strategy)
        per_rank = [own] if self._own_only else gather_objects(trainer.strategy, own)
        self.records = sorted((r for records in per_rank for r in records), key=lambda r: (r.round, r.client))
        folder = folder_here(trainer, self._folder)
        if folder is not None and self.records:
            self._write(folder, ClientNames.of(trainer.strategy))

    def _write(self, folder: Path, names: ClientNames) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "timeline.json").write_text(json.dumps(chrome_trace(self.records, names)), encoding="utf-8")
        try:
            draw_timeline(self.records, folder / "timeline.png", names)
        except ImportError as error:
            log.warning("timeline.png is not drawn: %s; pip install matplotlib", error)
