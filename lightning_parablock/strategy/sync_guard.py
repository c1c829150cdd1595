"""Collectives where not all ranks come: refused in steps that only some make, and located where they fail."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager

from lightning.pytorch.trainer.states import TrainerFn

from lightning_parablock.errors import ConfigurationError, PeerError
from lightning_parablock.strategy.fit import FitSession
from lightning_parablock.strategy.skipped_steps import NEW_SITES, SkippedSteps


class SyncGuard:
    """Knows which step of the module is running, and whether the others run it, too."""

    def __init__(self) -> None:
        self._refusals: list[str] = []

    @contextmanager
    def evaluation_step(self, *, is_uneven: bool, new_sites: bool = False) -> Generator[None]:
        """While a step of validation or test runs.

        Args:
            is_uneven: Whether clients have different or unknown numbers of batches.
            new_sites: Whether that is because sites come and go.
        """
        why = NEW_SITES if new_sites else "they have different or unknown numbers of batches"
        refusal = (
            f"in a step of validation or test, where {why}: some would wait for others that have none left; log with "
            "on_step=False and on_epoch=True"
        )
        with self._refusing(refusal if is_uneven else None):
            yield

    @contextmanager
    def training_step(self, skipped: SkippedSteps) -> Generator[None]:
        """While a training step runs.

        Args:
            skipped: Why other clients may skip this step.
        """
        refusal = (
            f"in training_step, where clients skip steps ({skipped.why}): some would wait for others that do not "
            "come; log without sync_dist, or in validation"
        )
        with self._refusing(refusal if skipped.in_steps else None):
            yield

    def check(self, what: str) -> None:
        """Refuse a collective in the step that runs, if there is a reason.

        Args:
            what: Name of the collective.

        Raises:
            ConfigurationError: not all ranks make this step.
        """
        if self._refusals:
            raise ConfigurationError(f"a {what} of all clients {self._refusals[-1]}")

    @contextmanager
    def _refusing(self, refusal: str | None) -> Generator[None]:
        if refusal is None:
            yield
            return
        self._refusals.append(refusal)
        try:
            yield
        finally:
            self._refusals.pop()


def located(error: PeerError, function: TrainerFn | None, session: FitSession | None) -> PeerError:
    """The error of a collective with where it was noticed: in which round, outside of all, or in which evaluation.

    Args:
        error: As the watch raised it.
        function: What the trainer does.
        session: The session of the fit; None before its rounds have started.
    """
    if function is not None and function != TrainerFn.FITTING:
        return error.outside_rounds(f"in {function.value}")
    return error.outside_rounds("before the first round") if session is None else session.located(error)
