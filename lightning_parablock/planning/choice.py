"""Choice of local steps and codec: the fewest, and the least lossy, that hide the exchange, with a margin for noise."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lightning_parablock.planning.timing import hiding_steps, mean_hiding_steps
from lightning_parablock.settings import MAX_AUTO_STEPS, BlockOrder

HEADROOM = 1.1
"""Required ratio of C to M: step and link times are measured once, and both vary."""


@dataclass(frozen=True)
class Choice:
    """The chosen number of local steps with a codec, and the reason.

    Attributes:
        local_steps: K.
        hiding_steps: The smallest K that hides every exchange; more than ``local_steps`` if that is at its maximum.
        mean_hiding_steps: The smallest K that would suffice if all blocks were alike.
        exchange_s: Mean seconds of an exchange.
    """

    local_steps: int
    hiding_steps: int
    mean_hiding_steps: int
    exchange_s: float

    @property
    def hides(self) -> bool:
        """Whether every exchange is hidden."""
        return self.local_steps >= self.hiding_steps

    def reason(self, codec: str, asked: int) -> str:
        """Why :func:`least_lossy` has chosen it, in words.

        Args:
            codec: Word for the codec.
            asked: The K that was asked for.
        """
        if self.hiding_steps <= asked:
            return f"the least compression with which {asked} local steps hide every exchange, {HEADROOM:g} times over"
        if self.hides:
            return f"not even {codec} hides every exchange behind {asked} local steps; that takes {self.hiding_steps}"
        return (
            f"not even {codec} hides every exchange: that takes {self.hiding_steps} local steps, and "
            f"{MAX_AUTO_STEPS} are the most that make sense"
        )


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
    return Choice(taken, hiding, mean_hiding_steps(step_s, wanted_s), math.fsum(exchanges_s) / len(exchanges_s))


def least_lossy(choices: Sequence[Choice], local_steps: int) -> int:
    """The index of the codec that plans recommend and that the clients take with ``compression="auto"``.

    It is the first whose exchanges ``local_steps`` hide; if there is none, the one that needs the fewest local steps,
    and of several such the one with the shortest exchange.

    Args:
        choices: Of each codec, least lossy first.
        local_steps: The K that was asked for; the smallest possible one where K is open, too.
    """
    fewest = min(range(len(choices)), key=lambda i: (choices[i].hiding_steps, choices[i].exchange_s))
    return next((i for i, choice in enumerate(choices) if choice.hiding_steps <= local_steps), fewest)
