"""What happens in Lightning between its hooks: signals, ends of batches, validation, a fit with nothing to train."""

from __future__ import annotations

from collections.abc import Callable

from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning_utilities.core.rank_zero import rank_zero_info

from lightning_parablock.federation.names import ClientNames
from lightning_parablock.launching.checkpoint_choice import agree_on_choice, agree_on_newest
from lightning_parablock.lightning_private.fit import (
    act_between_batches,
    finish_unstarted_fit,
    isolate_validation,
    silence_batch_broadcasts,
)
from lightning_parablock.lightning_private.signals import take_signals
from lightning_parablock.loading.empty_data import name_empty_data
from lightning_parablock.random_state import RandomState
from lightning_parablock.strategy.session_host import SessionHost
from lightning_parablock.strategy.sync_points import keep_time_by_rounds


class TrainerEvents:
    """Passes on to the session of a fit what no hook of a strategy tells.

    Args:
        host: The strategy.
    """

    def __init__(self, host: SessionHost) -> None:
        self._host = host

    def attach(self, trainer: Trainer) -> None:
        """Replace what a trainer does by itself where rounds cannot have it; once per run."""
        host = self._host
        silence_batch_broadcasts(trainer)
        take_signals(trainer, lambda signum: self._note_signal(trainer, signum))
        act_between_batches(trainer, lambda: host.session.pass_batch())
        if host.settings.is_elastic:
            agree_on_newest(trainer, host.choose_checkpoint)
        else:
            agree_on_choice(trainer, host)
        isolate_validation(trainer, self._note_random_state)
        finish_unstarted_fit(trainer, self._finish_unstarted)
        name_empty_data(trainer, lambda: ClientNames.of(host).label(host.hosted_clients[0]))

    def keep_time(self, trainer: Trainer) -> Callable[[], None]:
        """Let callbacks that look at a clock do so once a round; returns what undoes it."""
        return keep_time_by_rounds(trainer, self._is_at_round_start)

    def _is_at_round_start(self) -> bool:
        session = self._host.last_session
        return session is not None and session.engine.at_round_start

    def _note_random_state(self, state: RandomState | None) -> None:
        session = self._host.last_session
        if session is not None:
            session.view.note_random_state(state)

    def _note_signal(self, trainer: Trainer, signum: int) -> bool:
        """Whether a signal will be obeyed at the end of a batch on which all clients agree."""
        session = self._host.last_session
        if session is None and trainer.state.fn == TrainerFn.FITTING:
            self._host.early_signals[:] = [signum]
            return True
        if session is None or not session.stopping.is_open:
            return False
        session.stopping.note(signum)
        return True

    def _finish_unstarted(self) -> None:
        """Drain where a checkpoint was saved at the end of training, so that nothing was left to train. Collective."""
        if self._host.is_resuming:
            rank_zero_info("parablock: the checkpoint is from the end of training; only what was in flight is merged")
            self._host.start_rounds()
            self._host.session.begin_training()
            self._host.session.finish()
