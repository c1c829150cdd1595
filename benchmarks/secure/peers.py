"""One aggregation of a vector: secure sums of this package and Flower's SecAgg+, in turns on the same links."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.harness.results import git_state
from benchmarks.harness.run_figures import round_s, run_of
from benchmarks.harness.workers import Workers, attempt
from benchmarks.secure.arms import BASELINES, SITES
from benchmarks.secure.federation import new_federation
from benchmarks.secure.figures import peer_figures
from benchmarks.secure.flower import aggregate

FLOWER = "Flower SecAgg+"
SYSTEMS = [*(f"{arm}, {topology}" for arm in BASELINES for topology in ("sharded", "star")), FLOWER]
State = dict[str, Any]


def measure(options: argparse.Namespace, state: State, save: Callable[[], None]) -> None:
    """Make the missing runs of every system and link rate, one of each in turn; ``save`` is called after each."""
    for rate in options.peer_rates.split(","):
        for index in range(options.repeats):
            turn = SYSTEMS if index % 2 == 0 else SYSTEMS[::-1]
            for system in turn:
                _keep(options, state, system, float(rate), index)
                save()


def _keep(options: argparse.Namespace, state: State, system: str, rate_mbit: float, index: int) -> None:
    key = f"{system}, {rate_mbit:g} Mbit/s"
    row = state.setdefault(key, {"system": system, "rate_mbit": rate_mbit, "failed": None, "runs": []})
    if len(row["runs"]) > index:
        return
    made = attempt(_run, options, system, rate_mbit)
    row["failed"] = made.pop("failed")
    if row["failed"] is None:
        row["runs"].append(made)
        row["figures"] = peer_figures(row["runs"])
        print(key, row["figures"], flush=True)


def _run(options: argparse.Namespace, system: str, rate_mbit: float) -> dict[str, Any]:
    made = _by_flower(options, rate_mbit) if system == FLOWER else _by_parablock(options, system, rate_mbit)
    return {"git": git_state()} | made


def _by_flower(options: argparse.Namespace, rate_mbit: float) -> dict[str, Any]:
    """Bytes are those of the last aggregation: in the first one Flower sends float32, in all others float64."""
    found = aggregate(options.flower_python, SITES, options.peer_scalars, options.aggregations, rate_mbit)
    return found | {
        "upload_bytes": found["from_clients_bytes"][-1],
        "download_bytes": found["to_clients_bytes"][-1],
        "link_sent_bytes": [sent / options.aggregations for _, sent in found["client_link_bytes"]],
    }


def _by_parablock(options: argparse.Namespace, system: str, rate_mbit: float) -> dict[str, Any]:
    """A fit of one block whose steps take no time, at delay 0: a round is an aggregation and little else."""
    arm, topology = system.rsplit(", ", 1)
    model = {"kind": "sleep", "step_s": 0.0, "n_blocks": 1, "block_scalars": options.peer_scalars, "change": 1e-3}
    strategy = {"local_steps": 1, "delay_steps": 0, "topology": topology}
    with new_federation(SITES) as folder, Workers(SITES) as workers:
        # One more, since a round ends when the next one begins.
        plan = {"arm": arm, "folder": str(folder), "model": model, "rounds": options.aggregations + 1}
        answers = workers.run("benchmarks.secure.job:fit", plan | {"strategy": strategy}, rate_mbit=rate_mbit)
        sent = workers.bytes_sent()
    columns = [answer["rounds"] for answer in answers]
    return {
        "seconds": round_s(run_of(answers)),
        "upload_bytes": [one["upload_bytes"][-1] for one in columns],
        "download_bytes": [one["download_bytes"][-1] for one in columns],
        "link_sent_bytes": [total / (options.aggregations + 1) for total in sent],
    }
