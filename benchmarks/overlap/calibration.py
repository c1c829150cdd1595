"""Which link rate gives which M/C, estimated from the records of runs at delay 0."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

from benchmarks.harness.run_figures import Run, compute_s, exchange_s

HIGHEST_MBIT = 2000.0


@dataclass
class Calibration:
    """C, and M = fixed_s + megabits / rate, both in seconds per round.

    Attributes:
        compute_s: C, the mean over the rounds of the latest run.
        fixed_s: Duration of an exchange at infinite rate.
        megabits: Traffic on the slowest link per exchange, including all overhead.
    """

    compute_s: float
    fixed_s: float
    megabits: float

    @classmethod
    def of(cls, slow: Run, fast: Run) -> Calibration:
        """Estimate from two runs, the second at a higher rate."""
        slow_m, fast_m = fmean(exchange_s(slow)[1:]), fmean(exchange_s(fast)[1:])
        megabits = max(0.0, (slow_m - fast_m) / (1 / slow["rate_mbit"] - 1 / fast["rate_mbit"]))
        compute = fmean([*compute_s(slow)[1:], *compute_s(fast)[1:]])
        return cls(compute, max(0.0, fast_m - megabits / fast["rate_mbit"]), megabits)

    def rate_mbit(self, ratio: float) -> float:
        """The rate at which M = ratio C; at most 2 Gbit/s, where the fixed cost alone exceeds that."""
        left_s = ratio * self.compute_s - self.fixed_s
        return round(min(HIGHEST_MBIT, max(1.0, self.megabits / max(left_s, 1e-3))), 3)

    def learn(self, run: Run) -> None:
        """Update C and the megabits from another run, whose first round is not counted."""
        self.compute_s = fmean(compute_s(run)[1:])
        self.megabits = max(1.0, (fmean(exchange_s(run)[1:]) - self.fixed_s) * run["rate_mbit"])
