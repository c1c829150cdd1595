"""Committed rounds over time with the faults, and what each fault has cost."""

from __future__ import annotations

from textwrap import fill
from typing import Any

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

MARKS = {"kill": ("x", "tab:red"), "stop": ("s", "tab:orange"), "cut": ("v", "tab:purple")}


def draw(values: dict[str, Any]) -> Figure:
    """The figure of ``results/storm.json``'s values."""
    runs = {name: run for name, run in values["runs"].items() if not run["failed"]}
    storms = {name: run for name, run in runs.items() if run["figures"]["faults"]}
    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5))
    for index, (name, run) in enumerate(runs.items()):
        left.plot(*_committed(run), color=f"C{index}", label=name)
    for name, run in storms.items():
        for kind, (mark, color) in MARKS.items():
            at_min, rounds = _at_faults(run, kind)
            label = kind if name == next(iter(storms)) else None
            left.plot(at_min, rounds, mark, color=color, markersize=4, label=label)
    left.set(xlabel="minutes", ylabel="committed rounds", title="Storms, and the same without faults")
    left.grid(alpha=0.3)
    if runs:
        left.legend(fontsize=7)
    for place, run in enumerate(storms.values()):
        for offset, kind in enumerate(MARKS):
            rows = [row for row in run["figures"]["faults"] if row["kind"] == kind]
            where = place + 0.2 * (offset - 1)
            right.plot([where] * len(rows), [row["gap_s"] for row in rows], MARKS[kind][0], color=MARKS[kind][1])
    right.axhline(0, color="black", linewidth=0.8)
    right.set_xticks(range(len(storms)), [_in_lines(name) for name in storms], fontsize=7)
    right.set(ylabel="seconds", title="Longest time between commits around a fault, less a round")
    return figure


def _in_lines(name: str) -> str:
    return "\n".join(fill(part, 16) for part in name.split(", "))


def _committed(run: dict[str, Any]) -> tuple[list[float], list[int]]:
    times = [at_s / 60 for at_s in run["committed_s"] if at_s >= 0]
    return times, list(range(1, len(times) + 1))


def _at_faults(run: dict[str, Any], kind: str) -> tuple[list[float], list[int]]:
    times = [at_s for at_s in run["committed_s"] if at_s >= 0]
    at = [row["at_s"] - run["raw"]["began_s"] for row in run["figures"]["faults"] if row["kind"] == kind]
    return [at_s / 60 for at_s in at], [sum(one <= at_s for one in times) for at_s in at]
