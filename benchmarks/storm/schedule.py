"""The faults of a storm: when, what, and whom, as a function of a seed."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Literal

Kind = Literal["kill", "stop", "cut"]
KINDS: tuple[Kind, ...] = ("kill", "stop", "cut", "kill")
"""In turn, so that half of the faults are kills: a site that goes for good is the usual case."""
LIMITS_S = {"kill": ((2.0, 5.0), (2.0, 5.0)), "stop": ((0.5, 1.2), (5.0, 9.0)), "cut": ((0.5, 1.2), (4.0, 8.0))}
"""How long each kind lasts: shorter than the silence limit, and longer; a killed site is started again after that."""
CALM_SHARE = 0.1
"""Share of an interval at its beginning and end in which no fault begins, so that two are some time apart."""


@dataclass(frozen=True)
class Fault:
    """One fault.

    Attributes:
        at_s: Seconds after the storm's begin.
        kind: kill (SIGKILL, started again after ``for_s``), stop (SIGSTOP, SIGCONT after ``for_s``) or cut (the link).
        site: Index of the site.
        for_s: How long it lasts.
        is_long: Whether it lasts longer than the silence limit.
    """

    at_s: float
    kind: Kind
    site: int
    for_s: float
    is_long: bool


def draw(sites: int, duration_s: float, n: int, seed: int) -> list[Fault]:
    """``n`` faults, one in each of ``n`` equal intervals; each of four in a row is of another kind, in random order.

    Raises:
        ValueError: there is nothing to draw from.
    """
    if sites < 1 or n < 0 or duration_s <= 0:
        raise ValueError(f"cannot draw {n} faults for {sites} sites in {duration_s:g} s")
    chance, interval_s, faults, bag = random.Random(seed), duration_s / max(1, n), list[Fault](), list[Kind]()
    for index in range(n):
        if not bag:
            bag = list(KINDS)
            chance.shuffle(bag)
        kind, is_long = bag.pop(), chance.random() < 0.5
        at_s = (index + CALM_SHARE + (1 - 2 * CALM_SHARE) * chance.random()) * interval_s
        lasts_s = round(chance.uniform(*LIMITS_S[kind][is_long]), 3)
        faults.append(Fault(round(at_s, 3), kind, chance.randrange(sites), lasts_s, is_long or kind == "kill"))
    return faults
