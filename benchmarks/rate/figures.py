"""Slopes, prices and speed-ups of the runs on the problem with known constants, each with its 95 % interval.

A row is one method with one N, K and zeta: ``rounds`` holds its T's, and ``mean_squared_gradient`` one list per T with
one number per replica. Intervals resample whole replicas, with all their T's, methods and N's.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness.bootstrap import Statistic, interval

Row = dict[str, Any]
FEDBCD, PARABLOCK = "fedbcd", "parablock"


def leading_bound(row: Row, constants: dict[str, float]) -> list[float]:
    """The two terms of the descent lemma that fall as 1 / sqrt(T): 2 D gap / (eta K T) + eta L sigma^2 / N.

    With eta = sqrt(N / (K T)) / L they are (2 D gap L + sigma^2) / sqrt(N K T). As f >= 0, its value at the start
    bounds the gap. What client drift and staleness add falls as 1 / T and is left out.
    """
    gap = 2 * constants["blocks"] * constants["start_value"] * constants["smoothness"]
    top = gap + constants["noise"] ** 2
    return [top / math.sqrt(row["clients"] * row["local_steps"] * rounds) for rounds in row["rounds"]]


def slope(row: Row, *, at_least_rounds: int) -> dict[str, Any]:
    """Least-squares slope of log(mean over the replicas) against log T, for T >= ``at_least_rounds``.

    Raises:
        ValueError: there are fewer than two such T.
    """
    used = [i for i, rounds in enumerate(row["rounds"]) if rounds >= at_least_rounds]
    if len(used) < 2:
        raise ValueError(f"a slope needs two numbers of rounds of {at_least_rounds} or more, got {row['rounds']}")
    statistic = _slope_over([row["rounds"][i] for i in used])
    replicas = np.asarray(row["mean_squared_gradient"])[used].T
    return _with_interval(replicas, statistic, "slope") | {"rounds": [row["rounds"][i] for i in used]}


def price(parablock: Row, fedbcd: Row) -> list[dict[str, Any]]:
    """ParaBlock over FedBCD at each T: what one round of staleness costs. Both runs had the same noise."""
    both = zip(parablock["mean_squared_gradient"], fedbcd["mean_squared_gradient"], strict=True)
    return [_with_interval(np.stack(pair, axis=1), _ratio_of_means, "ratio") for pair in both]


def speedup(row: Row, fewest: Row) -> dict[str, Any]:
    """How many times fewer rounds than with the fewest clients, at the largest T: (their mean over this one)^2.

    As the mean decays as 1 / sqrt(T), a mean that is r times lower means r^2 times fewer rounds to the same value.
    """
    pair = np.stack([fewest["mean_squared_gradient"][-1], row["mean_squared_gradient"][-1]], axis=1)
    return _with_interval(pair, lambda rows: _ratio_of_means(rows) ** 2, "speedup")


def _slope_over(rounds: Sequence[int]) -> Statistic:
    log_rounds = np.log(rounds)
    centred = log_rounds - log_rounds.mean()
    weights = centred / (centred @ centred)
    return lambda rows: np.log(rows.mean(axis=1)) @ weights


def _ratio_of_means(rows: np.ndarray) -> np.ndarray:
    mean = rows.mean(axis=1)
    return mean[:, 0] / mean[:, 1]


def _with_interval(replicas: np.ndarray, statistic: Statistic, name: str) -> dict[str, Any]:
    return {name: float(statistic(replicas[None])[0]), "interval": interval(replicas.tolist(), statistic)}
