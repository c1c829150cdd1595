"""Signals at a site of an elastic run: it hands over what it keeps and goes, and the others continue without it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_parablock.elastic.view import SiteView
from lightning_parablock.errors import CheckpointError
from lightning_parablock.lightning_private.signals import save_and_requeue
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.stopping import ENDING, FILE_NAME, Stopping
from lightning_parablock.system.command_line import command_to_resume

log = logging.getLogger(__name__)

_GONE = {
    True: "has left",
    False: "goes, although the others have not confirmed it in time: they will see it as lost",
}


class Leaving(Stopping):
    """What the signals of this process do while a fit of an elastic run trains: no other site waits for them.

    Args:
        ranks: This site's rank.
        trainer: The trainer.
        site: This site.
        check: Raises if this site cannot continue.
    """

    def __init__(self, ranks: RankStrategy, trainer: Trainer, site: SiteView, check: Callable[[], object]) -> None:
        super().__init__(ranks, trainer, StopPoint((), lambda _: None), check)
        self._site = site

    @override
    def _announce(self, noted: signal.Signals, limit_s: float) -> None:
        log.warning(
            "parablock: %s: this site leaves the run at the end of a batch: what it has done in the running round is "
            "given up, and the others continue without it",
            ENDING[noted],
        )

    @override
    def _obey(self, own: Any) -> None:
        if own is None:
            return
        if own not in ENDING:
            with self._ranks.alone():
                save_and_requeue(self._trainer, own, lambda path: path)
            return
        self._cancel_limit()
        has_left = self._site.leave()
        path = str(Path(self._trainer.default_root_dir, self._ranks.own_file(FILE_NAME)))
        try:
            self._trainer.save_checkpoint(path)
        except CheckpointError as error:
            log.error("parablock: %s", error)
        else:
            self.has_saved = True
            how = "has left" if has_left else "goes without an answer of the others, who will find it lost"
            log.warning(
                "parablock: %s: this site %s; run the same command again to come back. Should all sites be gone, the "
                "run continues from %s: %s",
                *(ENDING[own], how, path, command_to_resume(path)),
            )
        raise self._ending(own)
