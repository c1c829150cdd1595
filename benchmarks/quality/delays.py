"""Which delay a run begins with: rounds without delay, and smaller delays, and what each costs round by round."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from statistics import fmean
from typing import Any

SIZES = {"cut": "cut-by-round", "whole": "whole-by-round", "quick": "quick-by-round"}
"""Size of the methods' runs -> the same size with a held-out loss after every round."""
WARM_UPS_ROUNDS = (1, 2, 4, 8)
BLOCKING = "no delay"
"""The method that the others are compared with: FedBCD."""


def methods(local_steps: int) -> dict[str, dict[str, Any]]:
    """Name, also of a file -> options of ParaBlockStrategy.

    The smaller delays last for the whole run. Until round t a run with a quarter of K is the one that takes another
    delay from round t on, so its first losses say what a smaller delay early on is worth.
    """
    warm_ups = {f"no delay in the first {n}": {"delay_warmup_rounds": n} for n in WARM_UPS_ROUNDS}
    parts = {"a quarter of K": 4, "half of K": 2}
    smaller = {f"delay {name}": {"delay_steps": max(1, local_steps // part)} for name, part in parts.items()}
    return {"delay K": {}, **warm_ups, **smaller, BLOCKING: {"delay_steps": 0}}


def over_blocking(runs: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[int, float]]]:
    """Size -> method -> optimizer step -> held-out loss over that of :data:`BLOCKING` with the same seed, as a share.

    Mean over the seeds that both have; failed runs are left out.
    """
    losses: dict[tuple[str, int, str], dict[int, float]] = {
        (run["size"], run["seed"], run["method"]): {int(step): loss for step, loss in run["held_out_loss"]}
        for run in runs
        if not run.get("failed") and run["size"] in SIZES.values()
    }
    shares: dict[str, dict[str, dict[int, list[float]]]] = defaultdict(lambda: defaultdict(lambda: defaultdict(list)))
    for (size, seed, method), curve in losses.items():
        blocking = losses.get((size, seed, BLOCKING), {})
        for step, loss in curve.items():
            if step in blocking:
                shares[size][method][step].append(loss / blocking[step] - 1)
    return {
        size: {name: {step: fmean(found) for step, found in at.items()} for name, at in by_method.items()}
        for size, by_method in shares.items()
    }
