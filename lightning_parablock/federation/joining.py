"""A client that begins in the middle of a run: with W as all members have it when the round starts."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from lightning_parablock.errors import CallOrderError
from lightning_parablock.federation.rounds import RoundEngine


def start_at(engine: RoundEngine, round_index: int, committed: Mapping[int, Tensor], *, first_round: int = 0) -> None:
    """Make a fresh engine begin with a round, with nothing of its own in flight and zero residuals.

    Rounds before it that are not due yet have exchanges here, too, without deltas of this engine's clients: their
    commits are merged when they fall due, as on every other member.

    Args:
        engine: An engine that has trained nothing.
        round_index: The round.
        committed: W of each block with the commits that are due before the round, shape (numel,), by block.
        first_round: The run's first round: later than 0 where it began with a checkpoint.

    Raises:
        CallOrderError: the engine has trained already.
    """
    if engine.flights or engine.round or engine.steps:
        raise CallOrderError("only an engine that has not trained yet can begin with a later round")
    for block, value in committed.items():
        engine.flat.unpack(block, value.to(engine.flat.device))
    first = engine.settings.delay.newest_due_at_start(round_index) + 1
    for t in range(max(first_round, first), round_index):
        engine.begin_at(t)
        engine.work = engine.schedule.work_of(t, engine.norms)
        engine.submit(t, engine.work, {}, {})
    engine.begin_at(round_index)
