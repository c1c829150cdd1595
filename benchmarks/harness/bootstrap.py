"""Confidence intervals by resampling the measurements (Efron's percentile bootstrap)."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Statistic = Callable[[np.ndarray], np.ndarray]
"""Maps rows of shape (draws, measurements, columns) to one number per draw, shape (draws,)."""

LEVEL = 0.95
DRAWS = 10_000


def interval(
    measured: Sequence[Sequence[float]],
    statistic: Statistic,
    *,
    seed: int = 0,
    draws: int = DRAWS,
) -> list[float]:
    """The 95 % interval [low, high] of a statistic of independent measurements.

    Args:
        measured: One row per measurement. Rows are resampled whole, so their columns stay together (e.g. a pair).
        statistic: The statistic whose interval is wanted.
        seed: Random seed for the resampling, so that the same numbers give the same interval.
        draws: Number of resamples.
    """
    rows = np.asarray(measured, dtype=float)
    picked = np.random.default_rng(seed).integers(0, len(rows), (draws, len(rows)))
    tail = 50 * (1 - LEVEL)
    low, high = np.percentile(statistic(rows[picked]), [tail, 100 - tail])
    return [float(low), float(high)]


def median_ratio(rows: np.ndarray) -> np.ndarray:
    """Median over the measurements of column 0 / column 1."""
    return np.median(rows[..., 0] / rows[..., 1], axis=-1)


def ratio_with_interval(pairs: Sequence[Sequence[float]], *, seed: int = 0) -> dict[str, float | list[float]]:
    """Median of the ratios first / second, its 95 % interval, and the number of pairs."""
    return {
        "ratio": float(median_ratio(np.asarray(pairs, dtype=float)[None])[0]),
        "interval": interval(pairs, median_ratio, seed=seed),
        "pairs": len(pairs),
    }
