"""Which rate of the links gives which M/C, learned from runs at delay 0: arithmetic on records."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from benchmarks.harness.run_figures import Run, compute_s, exchange_s

HIGHEST_MBIT = 2000.0


@dataclass
class Calibration:
    """C, and M = fixed_s + megabits / rate, both in seconds a round.

    Attributes:
        compute_s: C, the mean over the rounds of the run last learned from.
        fixed_s: What an exchange takes on an endless rate.
        megabits: What passes the slowest link, with all that it takes.
    """

    compute_s: float
    fixed_s: float
    megabits: float

    @classmethod
    def of(cls, slow: Run, fast: Run) -> Calibration:
        """From two runs at different rates, of which the second one's is higher."""
        slow_m, fast_m = fmean(exchange_s(slow)[1:]), fmean(exchange_s(fast)[1:])
        megabits = max(0.0, (slow_m - fast_m) / (1 / slow["rate_mbit"] - 1 / fast["rate_mbit"]))
        compute = fmean([*compute_s(slow)[1:], *compute_s(fast)[1:]])
        return cls(compute, max(0.0, fast_m - megabits / fast["rate_mbit"]), megabits)

    def rate_mbit(self, ratio: float) -> float:
        """The rate at which M = ratio C; at most 2 Gbit/s, where C is so short that fixed costs are longer."""
        left_s = ratio * self.compute_s - self.fixed_s
        return round(min(HIGHEST_MBIT, max(1.0, self.megabits / max(left_s, 1e-3))), 3)

    def learn(self, run: Run) -> None:
        """Correct C and the megabits by a further run, whose first round does not count."""
        self.compute_s = fmean(compute_s(run)[1:])
        self.megabits = max(1.0, (fmean(exchange_s(run)[1:]) - self.fixed_s) * run["rate_mbit"])
