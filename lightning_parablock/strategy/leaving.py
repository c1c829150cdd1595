"""Signals at a site of an elastic run: it hands over what it keeps and goes, and the others continue without it."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from typing_extensions import override

from lightning_parablock.elastic.site import LEAVE_S
from lightning_parablock.errors import CheckpointError
from lightning_parablock.lightning_private.signals import save_and_requeue
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.strategy.elastic_run import ElasticRun
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.strategy.stopping import ENDING, FILE_NAME, Stopping
from lightning_parablock.system.command_line import command_to_resume

log = logging.getLogger(__name__)

BATCH_S = 5.0
"""How long a site that was told to end waits for the end of its batch; schedulers kill it about 30 s after SIGTERM."""


class Leaving(Stopping):
    """What the signals of this process do while a fit of an elastic run trains: no other site waits for them.

    Args:
        ranks: This site's rank.
        trainer: The trainer.
        run: This site's part in the run.
        check: Raises if this site cannot continue.
    """

    def __init__(self, ranks: RankStrategy, trainer: Trainer, run: ElasticRun, check: Callable[[], object]) -> None:
        super().__init__(ranks, trainer, StopPoint((), lambda _: None), check)
        self._site, self._name = run.site, run.name_of(run.client)
        self._is_at_batch_end = False

    @override
    def _limit_of(self, noted: signal.Signals) -> float:
        return BATCH_S

    @override
    def _announce(self, noted: signal.Signals, limit_s: float) -> None:
        again = "; Ctrl-C again ends it at once" if noted == signal.SIGINT else ""
        log.warning(
            "parablock: %s: site %s leaves the run within %g s: what it has done in the running round is given up, and "
            "the others continue without it%s",
            *(ENDING[noted], self._name, limit_s + LEAVE_S, again),
        )

    @override
    def _pass_limit(self, noted: signal.Signals, limit_s: float) -> None:
        """In a long step or a validation: the others need not wait for its end."""
        how = self._leave()
        if not self._is_at_batch_end:
            log.warning(
                "parablock: %s: site %s %s, in the middle of a step or a validation; run the same command again to "
                "come back",
                *(ENDING[noted], self._name, how),
            )
            self._interrupt(noted)

    @override
    def _obey(self, own: Any) -> None:
        if own is None:
            return
        if own not in ENDING:
            with self._ranks.alone():
                save_and_requeue(self._trainer, own, lambda path: path)
            return
        self._is_at_batch_end = True
        self._cancel_limit()
        how = self._leave()
        path = str(Path(self._trainer.default_root_dir, self._ranks.own_file(FILE_NAME)))
        try:
            self._trainer.save_checkpoint(path)
        except CheckpointError as error:
            log.error("parablock: %s", error)
        else:
            self.has_saved = True
            log.warning(
                "parablock: %s: site %s %s; run the same command again to come back. Should all sites be gone, the run "
                "continues from %s: %s",
                *(ENDING[own], self._name, how, path, command_to_resume(path)),
            )
        raise self._ending(own)

    def _leave(self) -> str:
        """Hand over what this site keeps, and go; returns in words how that went."""
        has_left = self._site.leave()
        return "has left" if has_left else "goes without an answer of the others, who will find it lost"
