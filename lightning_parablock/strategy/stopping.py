"""Signals that stop or requeue a run: all ranks save at the end of the same batch, and a resumed run continues exactly.

Lightning acts on a signal in its handler: in the middle of a batch, each process for itself, so that states of
different steps end up under one name. Here a handler only records the signal; the ranks agree on the batch at which
they stop, see ``membership/stop_point.py``.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_parablock.errors import CheckpointError, PeerLostError
from lightning_parablock.lightning_private.signals import mark_terminated, save_and_requeue
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.strategy.ranks import RankStrategy
from lightning_parablock.system.command_line import command_to_resume
from lightning_parablock.system.places import is_name

log = logging.getLogger(__name__)

FILE_NAME = "stopped.ckpt"
LIMITS_S = {signal.SIGINT: 60.0, signal.SIGTERM: 20.0}
"""How long a process that was told to end waits for the others; schedulers kill it about 30 s after SIGTERM."""

_SAME_S = 1.0  # launchers forward to their processes what the terminal has already sent to these
ENDING = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
"""The signals that end a process, in words."""


class Stopping:
    """What the signals of this process do while a fit trains.

    Args:
        ranks: The ranks of the run.
        trainer: The trainer.
        point: Agrees on a batch with the other ranks.
        check: Raises if a peer is lost.

    Attributes:
        has_saved: Whether all ranks have saved at a common batch in order to end.
        is_open: Whether signals are recorded.
    """

    def __init__(self, ranks: RankStrategy, trainer: Trainer, point: StopPoint, check: Callable[[], object]) -> None:
        self._ranks, self._trainer, self._point, self._check = ranks, trainer, point, check
        self._signal: signal.Signals | None = None  # noted, and not taken to a batch yet
        self._told: signal.Signals | None = None  # to end, which it does in any case
        self._told_s = 0.0
        self._limit: threading.Timer | None = None
        self._is_late = False
        self._default_handler: Any = None
        self.has_saved = self.is_open = False

    # --- signals ------------------------------------------------------------------------------------------------------

    def open(self) -> None:
        """From now on Ctrl-C makes all ranks save first; a second one ends the process at once."""
        self.is_open = True
        is_main = threading.current_thread() is threading.main_thread()
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._default_handler = signal.signal(signal.SIGINT, lambda signum, _: self.note(signum))

    def close(self) -> None:
        """From now on signals do what they did before :meth:`open`."""
        self.is_open = False
        self._cancel_limit()
        if self._default_handler is not None and signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._default_handler)
        self._default_handler = None

    def note(self, signum: int) -> None:
        """Record a signal, which is obeyed at the end of a batch.

        Raises:
            KeyboardInterrupt: Ctrl-C came again, or the other clients have not come within the limit.
            SIGTERMException: the same after SIGTERM.
        """
        noted, now_s = signal.Signals(signum), time.monotonic()
        is_again = noted == self._told == signal.SIGINT and now_s - self._told_s > _SAME_S
        if is_again or self._is_late:
            raise self._ending(noted)
        if self._told is not None:
            return
        self._signal = noted
        self._point.request()
        if noted in ENDING:
            self._told, self._told_s = noted, now_s
            limit_s = self._limit_of(noted)
            self._announce(noted, limit_s)
            self._start_limit(noted, limit_s)

    def _limit_of(self, noted: signal.Signals) -> float:
        return LIMITS_S[noted]

    def _announce(self, noted: signal.Signals, limit_s: float) -> None:
        again = "; Ctrl-C again ends this one at once" if noted == signal.SIGINT else ""
        log.warning(
            "parablock: %s: all clients save at the end of a batch, within %g s%s", ENDING[noted], limit_s, again
        )

    def _start_limit(self, noted: signal.Signals, limit_s: float) -> None:
        self._limit = threading.Timer(limit_s, self._pass_limit, (noted, limit_s))
        self._limit.daemon = True
        self._limit.start()

    def _pass_limit(self, noted: signal.Signals, limit_s: float) -> None:
        """The limit has passed without the batch's end; on a thread of its own."""
        log.warning("parablock: the other clients have not come within %g s; this one ends without them", limit_s)
        self._interrupt(noted)

    def _interrupt(self, noted: signal.Signals) -> None:
        """Let :meth:`note` raise in the main thread, wherever that is."""
        main_thread = threading.main_thread().ident
        assert main_thread is not None
        self._is_late = True
        signal.pthread_kill(main_thread, noted)

    def _cancel_limit(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit.join(1.0)  # a thread that is left may be in the way of the process' end
            self._limit = None

    # --- at the end of a batch ----------------------------------------------------------------------------------------

    def pass_batch(self) -> None:
        """Pass the end of a batch, where all clients may have agreed to save.

        Raises:
            KeyboardInterrupt: all have saved, and this process was told to end by Ctrl-C.
            SIGTERMException: the same by SIGTERM.
            PeerLostError: all have saved, and another process was told to end.
            CheckpointError: a requeued run could not be saved.
        """
        if not self._point.pass_batch(self._check):
            return
        # Taken before anything is done with it: a signal that is noted from here on is obeyed at a later batch.
        own, self._signal = self._signal, None
        self._obey(own)

    def _obey(self, own: signal.Signals | None) -> None:
        """Do, together with all others, what the signals of all of them say."""
        numbers = self._ranks.gather_objects(None if own is None else int(own))
        signals = [None if number is None else signal.Signals(number) for number in numbers]
        if any(noted in ENDING for noted in signals):
            self._cancel_limit()
            self._end(signals)
        # Without any, the signal that asked for this batch was noted just in time for the one before.
        wanted = [noted for noted in signals if noted is not None]
        if wanted:
            self._requeue(wanted[0])

    def _end(self, signals: Sequence[signal.Signals | None]) -> None:
        folder = Path(self._trainer.default_root_dir)
        step, saved = self._trainer.global_step, "nothing could be saved"
        try:
            path = self._path_of_all(str((folder if self._ranks.site_names else folder.absolute()) / FILE_NAME))
            self._trainer.save_checkpoint(path)
        except CheckpointError as error:  # on all of them
            log.error("parablock: %s", error)
        else:
            self.has_saved = True
            saved = f"all clients have saved at step {step}; to continue exactly from there: {command_to_resume(path)}"
        own = self._told
        if own is not None:
            log.warning("parablock: %s: %s", ENDING[own], saved)
            raise self._ending(own)
        told = [f"{self._ranks.describe(r)} by {ENDING[s]}" for r, s in enumerate(signals) if s and s in ENDING]
        raise PeerLostError(f"stopped: {', '.join(told)}; {saved}")

    def _ending(self, noted: signal.Signals) -> BaseException:
        if noted == signal.SIGINT:
            return KeyboardInterrupt()
        mark_terminated(self._trainer)
        return SIGTERMException(128 + noted)  # the exit code by convention

    def _requeue(self, signum: signal.Signals) -> None:
        """What Lightning does in the handler, with the first rank's number of the file for all."""
        save_and_requeue(self._trainer, signum, self._path_of_all)

    def _path_of_all(self, own: str) -> str:
        """Where all ranks save: at the first one's path, or where sites have names, under its name in their own folder.

        Raises:
            CheckpointError: the first site says no name of a file.
        """
        if not self._ranks.site_names:  # one command has started them: on one machine they share a folder
            return self._ranks.broadcast(own)
        name = self._ranks.broadcast(Path(own).name)
        if not is_name(name):
            raise CheckpointError(
                f"{self._ranks.describe(0)} saves as {name!r:.80}, which leads out of the folder {Path(own).parent}: "
                "nothing is saved; install the same version at every site"
            )
        return str(Path(own).with_name(name))
