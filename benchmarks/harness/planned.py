"""Seconds of a whole run by the planner's model: measured computation of each round, and the bytes of its exchange.

Nothing is timed here. C_t is the computation of round t, M_t its exchange by the rate of the links; one exchange runs
at a time. A delay of 0 gives the sum of C_t + M_t, a delay of one round that of max(C_t, M_(t-1)).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from lightning_parablock.planning.timing import NOMINAL_GOODPUT


@dataclass(frozen=True)
class Planned:
    """When each committed model of a run is there, in seconds after the start of the first round.

    Attributes:
        rounds_s: For each round: it is over, and every commit that is due by then is merged.
        drained_s: The last exchange is merged.
    """

    rounds_s: list[float]
    drained_s: float


def link_s(n_bytes: float, rate_mbit: float) -> float:
    """Seconds of a transfer in one direction of a link with a nominal rate in Mbit/s."""
    return 8 * n_bytes / (NOMINAL_GOODPUT * rate_mbit * 1e6)


def planned(compute_s: Sequence[float], exchange_s: Sequence[float], delay_rounds: float) -> Planned:
    """Plan a run whose exchanges are due ``delay_rounds`` rounds after the end of their round.

    With a delay of 1.5, each round waits halfway through for the exchange of the round before the previous one.

    Args:
        compute_s: C_t of each round, at least one.
        exchange_s: M_t of each round.
        delay_rounds: ``delay_steps`` over ``local_steps``.
    """
    whole, part = int(delay_rounds), delay_rounds % 1
    end_s, ends_s, arrived_s = 0.0, list[float](), list[float]()
    for number, (compute, exchange) in enumerate(zip(compute_s, exchange_s, strict=True)):
        end_s += part * compute
        if (due := number - 1 - whole) >= 0:
            end_s = max(end_s, arrived_s[due])
        end_s += (1 - part) * compute
        ends_s.append(end_s)
        arrived_s.append(max(end_s, arrived_s[-1] if arrived_s else 0.0) + exchange)
    # What is due at a round's very end is waited for there: the round before it with a delay of one, itself with none.
    merged = [number - whole if part == 0 else -1 for number in range(len(ends_s))]
    rounds_s = [max(end, arrived_s[due]) if due >= 0 else end for end, due in zip(ends_s, merged, strict=True)]
    return Planned(rounds_s, arrived_s[-1])
