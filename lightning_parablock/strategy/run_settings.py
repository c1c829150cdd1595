"""The settings of a run, of which some are only known after the strategy has been made."""

from __future__ import annotations

import os

from lightning_parablock.settings import Settings


class RunSettings:
    """Holds the newest record of a run's settings; a record itself never changes.

    A run's seed is known when its processes are set up; local steps and compression of "auto" when a checkpoint is
    loaded, or when the clients have agreed on them in round 0. A later fit of the same strategy keeps what was settled.

    Args:
        given: As the strategy was made.
        seed_is_given: Whether its seed is the user's, and not the one of ``seed_everything``.
    """

    def __init__(self, given: Settings, *, seed_is_given: bool) -> None:
        self._newest, self._seed_is_given = given, seed_is_given

    @property
    def newest(self) -> Settings:
        """The record with everything that is known by now."""
        return self._newest

    def take_seed(self) -> None:
        """Take over the seed of ``seed_everything``, else 0, where the user has given none to the strategy."""
        if not self._seed_is_given:
            seed = int(os.environ.get("PL_GLOBAL_SEED", 0))
            self.settle(self._newest.with_seed(seed))

    def settle(self, settings: Settings) -> None:
        """Replace the record by one in which more is known."""
        self._newest = settings
