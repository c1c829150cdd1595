"""GSM8K with the cut model: final losses with secure sums of one and two bytes, and with plain means."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from benchmarks.harness.gsm8k import LIMIT_S, SIZES
from benchmarks.harness.results import git_state
from benchmarks.harness.workers import Workers, attempt
from benchmarks.secure.arms import SITES, bytes_per_value
from benchmarks.secure.federation import new_federation

REFERENCE = "none"
METHODS = (REFERENCE, "secure, 1 byte", "secure, 2 bytes")
State = dict[str, Any]


def train(options: argparse.Namespace, state: State, save: Callable[[], None]) -> None:
    """Make the missing runs, seed by seed; ``save`` is called after each."""
    # Hosts of their own, though the links are not shaped: a federation gives every site an address.
    with Workers(SITES) as workers:
        for seed in SIZES[options.size].seeds:
            for method in METHODS:
                key = f"{method}, seed {seed}"
                if state.get(key, {"failed": ""})["failed"] is not None:
                    facts = {"size": options.size, "method": method, "seed": seed}
                    state[key] = facts | attempt(_run, options, workers, facts)
                    save()


def _run(options: argparse.Namespace, workers: Workers, facts: dict[str, Any]) -> dict[str, Any]:
    arm = facts["method"]
    with ExitStack() as opened:
        folder = None if bytes_per_value(arm) is None else str(opened.enter_context(new_federation(SITES)))
        plan = facts | {"arm": arm, "folder": folder, "strategy": {}, "clients": SITES}
        plan |= {"train": options.train_file, "test": options.test_file}
        answers = workers.run("benchmarks.secure.job:train", plan, rate_mbit=None, limit_s=LIMIT_S)
    counts = {name: sum(answer[name] for answer in answers) for name in ("values", "saturated")}
    losses = [round(loss, 4) for _, loss in answers[0]["held_out_loss"]]
    print(f"{arm}, seed {facts['seed']}: {losses}, {counts} in {answers[0]['seconds']:.0f} s", flush=True)
    return answers[0] | counts | {"git": git_state()}
