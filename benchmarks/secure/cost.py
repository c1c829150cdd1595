"""Secure sums against the codec with as many bytes per value: pairs of fits on shaped links, in alternating order."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import product
from statistics import fmean
from typing import Any

from benchmarks.harness.results import git_state
from benchmarks.harness.run_figures import Run, compute_s, exchange_s, run_of
from benchmarks.harness.smollm2 import last_layers
from benchmarks.harness.workers import Workers, attempt
from benchmarks.secure.arms import BASELINES, SITES, bytes_per_value
from benchmarks.secure.federation import new_federation
from benchmarks.secure.figures import Pair, cost_figures, cost_summary
from benchmarks.secure.stated import secure_bytes
from lightning_parablock.settings import Settings

LOCAL_STEPS = 2
PROBE_STEP_S = 0.05
PROBE_ROUNDS = 4
MODELS: dict[str, dict[str, Any]] = {
    "sleep": {"kind": "sleep", "step_s": PROBE_STEP_S, "n_blocks": 4, "block_scalars": 1 << 22, "change": 1e-3},
    "real": {
        "kind": "smollm2", "layers": None, "tokens": 16, "blocks": last_layers(8, together=4),
        "block_scalars": 14_160_384,
    },
}  # fmt: skip
"""Computation -> model: a timed sleep, or SmolLM2-135M, whose last 8 layers are 2 blocks."""
State = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """One row of the part.

    Attributes:
        computation: Key of MODELS.
        topology: "sharded" or "star".
        arm: An arm with secure sums.
        ratio: M/C that is aimed at, with the M of the baseline alone on the link.
    """

    computation: str
    topology: str
    arm: str
    ratio: float

    @property
    def key(self) -> str:
        """Its name in the result."""
        return f"{self.arm}, {self.topology}, {self.computation}, M/C {self.ratio:g}"


def cases(options: argparse.Namespace) -> list[Case]:
    """All rows that are asked for."""
    ratios = map(float, options.ratios.split(","))
    named = (options.computations.split(","), options.topologies.split(","), BASELINES, ratios)
    return [Case(*one) for one in product(*named)]


def measure(options: argparse.Namespace, state: State, save: Callable[[], None]) -> None:
    """Make the missing pairs of every case; ``save`` is called after each."""
    with Workers(SITES) as workers:
        for case in cases(options):
            row = state.setdefault(case.key, {**vars(case), "failed": None, "pairs": []})
            if len(row["pairs"]) < options.pairs:
                row |= attempt(_pairs, options, _Hosts(options, workers, case), row, save)
                save()


def _pairs(options: argparse.Namespace, hosts: _Hosts, row: State, save: Callable[[], None]) -> dict[str, Any]:
    row["git"] = git_state()
    chosen = hosts.chosen(hosts.run(BASELINES[hosts.case.arm], hosts.probe()))
    while len(row["pairs"]) < options.pairs:
        pair = hosts.pair(chosen, is_swapped=len(row["pairs"]) % 2 == 1)
        row["pairs"].append(pair)
        row["figures"] = cost_summary([cost_figures(one) for one in row["pairs"]])
        print(f"{hosts.case.key}, pair {len(row['pairs'])}: {_said(cost_figures(pair))}", flush=True)
        save()
    return {}


def _said(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: round(value, 4) for name, value in figures.items()}


@dataclass(frozen=True)
class _Plan:
    """How long a run computes."""

    step_s: float
    local_steps: int
    delay_steps: int
    rounds: int


class _Hosts:
    """The workers, and the fits of one case."""

    def __init__(self, options: argparse.Namespace, workers: Workers, case: Case) -> None:
        self.case = case
        self._options, self._workers = options, workers
        self._model = dict(MODELS[case.computation])
        if options.scalars is not None and case.computation == "sleep":
            self._model["block_scalars"] = options.scalars

    def probe(self) -> _Plan:
        """A run at delay 0, whose exchanges have the links to themselves."""
        return _Plan(PROBE_STEP_S, 1, 0, PROBE_ROUNDS)

    def chosen(self, probe: Run) -> _Plan:
        """The computation that takes M / ratio; in whole steps, and so rather more, where it is not a sleep."""
        wanted_s = fmean(exchange_s(probe)[1:]) / self.case.ratio
        if self.case.computation == "sleep":
            return _Plan(wanted_s / LOCAL_STEPS, LOCAL_STEPS, LOCAL_STEPS, self._options.rounds)
        local_steps = max(1, math.ceil(wanted_s / fmean(compute_s(probe)[1:])))
        return _Plan(0.0, local_steps, local_steps, self._options.rounds)

    def pair(self, plan: _Plan, *, is_swapped: bool) -> Pair:
        """One run of each arm."""
        order = [BASELINES[self.case.arm], self.case.arm]
        made = {arm: self.run(arm, plan) for arm in (reversed(order) if is_swapped else order)}
        return {"baseline": made[order[0]], "secure": made[order[1]]}

    def run(self, arm: str, plan: _Plan) -> Run:
        """One fit on all hosts, with the bytes that each should have sent and received, and those of its link."""
        with ExitStack() as opened:
            folder = None if bytes_per_value(arm) is None else str(opened.enter_context(new_federation(SITES)))
            told = {"arm": arm, "folder": folder, "model": self._model | {"step_s": plan.step_s}}
            told |= {"rounds": plan.rounds, "strategy": self._strategy(plan)}
            before = self._workers.bytes_sent() if self._workers.is_open else [0] * SITES
            answers = self._workers.run("benchmarks.secure.job:fit", told, rate_mbit=self._options.rate_mbit)
            sent = [after - first for after, first in zip(self._workers.bytes_sent(), before, strict=True)]
        facts = {"arm": arm, "delay_steps": plan.delay_steps, "local_steps": plan.local_steps, "step_s": plan.step_s}
        blocks = answers[0]["rounds"]["block"]
        stated = None if folder is None else list(self._stated(arm, blocks, plan))
        return run_of(answers, **facts, blocks=blocks, link_sent_bytes=sent, stated_bytes=stated)

    def _strategy(self, plan: _Plan) -> dict[str, Any]:
        lengths = {"local_steps": plan.local_steps, "delay_steps": plan.delay_steps}
        return lengths | {"topology": self.case.topology}

    def _stated(self, arm: str, blocks: list[str], plan: _Plan) -> Iterator[list[tuple[int, int]]]:
        """Per round, (upload, download) of each client."""
        width, chunk_bytes = bytes_per_value(arm), Settings(**self._strategy(plan)).chunk_bytes
        assert width is not None
        for index, block in enumerate(blocks):
            yield secure_bytes(
                self._model["block_scalars"],
                SITES,
                self.case.topology,  # type: ignore[arg-type]
                chunk_bytes,
                width,
                is_first=block not in blocks[:index],
            )
