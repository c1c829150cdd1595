"""Choice of the number of local steps: the smallest that hides the exchange, with a margin for measurement noise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_parablock.planning.timing import hiding_steps, mean_hiding_steps
from lightning_parablock.settings import MAX_AUTO_STEPS, BlockOrder

HEADROOM = 1.1
"""Required ratio of C to M: step and link times are measured once, and both vary."""


@dataclass(frozen=True)
class Choice:
    """The chosen number of local steps, and the reason.

    Attributes:
        local_steps: K.
        hiding_steps: The smallest K that hides every exchange; more than ``local_steps`` if that is at its maximum.
        mean_hiding_steps: The smallest K that would suffice if all blocks were alike.
    """

    local_steps: int
    hiding_steps: int
    mean_hiding_steps: int

    @property
    def hides(self) -> bool:
        """Whether every exchange is hidden."""
        return self.local_steps >= self.hiding_steps


def choose_local_steps(
    step_s: Sequence[float], exchanges_s: Sequence[float], order: BlockOrder, *, at_least: int = 1
) -> Choice:
    """The smallest K from ``at_least`` to ``MAX_AUTO_STEPS`` with C_t >= HEADROOM M_{t-1} in every round.

    Args:
        step_s: Seconds of one local step on each block, on the slowest client.
        exchanges_s: Seconds of the exchange of each block, over the slowest link.
        order: Order in which the blocks are trained.
        at_least: Number of local steps already made.
    """
    wanted_s = [HEADROOM * exchange for exchange in exchanges_s]
    hiding = hiding_steps(step_s, wanted_s, order)
    taken = max(at_least, min(hiding, MAX_AUTO_STEPS))
    return Choice(taken, hiding, mean_hiding_steps(step_s, wanted_s))
