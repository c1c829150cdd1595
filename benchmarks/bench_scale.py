"""Seconds per round with 2 to 8 clients, compared with the planner's prediction.

A timed sleep replaces the local steps, because there are more clients than cores. The blocks, a million scalars each,
are really exchanged between hosts with shaped links. The planner is given the step time and the link rates, once as
measured by its own probe, once as the nominal rate times its usual goodput. A round lasts from its start to the start
of the next one; the first two rounds and the final drain are not counted.

    python -m benchmarks.bench_scale
"""

from __future__ import annotations

import argparse
from statistics import median
from typing import Any

from benchmarks.harness.publish import parser, publish
from benchmarks.harness.run_figures import compute_s, exchange_s, round_s, run_of
from benchmarks.harness.workers import Workers, attempt
from lightning_parablock.planning.timing import NOMINAL_GOODPUT, Links, round_times
from lightning_parablock.planning.timing import exchange_s as planned_exchange_s
from lightning_parablock.settings import Settings, Topology

QUESTION = "scale"
LOCAL_STEPS = 2
STEP_S = 0.25
BLOCK_SCALARS = 1 << 20
MODEL: dict[str, Any] = {"kind": "sleep", "step_s": STEP_S, "n_blocks": 4, "block_scalars": BLOCK_SCALARS}
TOPOLOGIES: tuple[Topology, ...] = ("sharded", "star")
Case = tuple[Topology, str]
DELAYS = {"blocking": 0, "parablock": LOCAL_STEPS}
SETTLED = 2
"""Rounds to skip at the start: caches and connections are cold, and nothing is in flight during the first."""


def main() -> None:
    """Measure every combination of number of clients and topology, and write the result."""
    made = parser(__doc__)
    made.add_argument("--clients", default="2,4,6,8", help="comma-separated list")
    made.add_argument("--rate-mbit", type=float, default=100.0, help="rate of every link in both directions, in Mbit/s")
    made.add_argument("--rounds", type=int, default=8, help="rounds per run")
    made.add_argument("--repeats", type=int, default=5, help="runs per configuration, interleaved")
    options = made.parse_args()
    if options.quick:
        options.clients, options.rounds, options.repeats = "2,4", 4, 1
    configurations = [one for n in map(int, options.clients.split(",")) for one in _measure(options, n)]
    publish(
        QUESTION,
        options,
        configuration={"model": MODEL, "local_steps": LOCAL_STEPS},
        seeds=[0],
        network={"rate_mbit_s": options.rate_mbit, "shaped": "both directions of every host"},
        values={"compute": "timed sleep", "configurations": configurations},
    )


def _measure(options: argparse.Namespace, clients: int) -> list[dict[str, Any]]:
    cases: list[Case] = [(topology, method) for topology in TOPOLOGIES for method in DELAYS]
    with Workers(clients) as workers:
        probed = attempt(_probe, options, workers)
        runs = [(case, attempt(_run, options, workers, *case)) for _ in range(options.repeats) for case in cases]
    return [_row(options, clients, case, [run for other, run in runs if other == case], probed) for case in cases]


def _probe(options: argparse.Namespace, workers: Workers) -> dict[str, Any]:
    """Topology -> the link rates that the planner's probe measures."""
    return workers.run("benchmarks.scale.job:probe", {}, rate_mbit=options.rate_mbit)[0]


def _run(options: argparse.Namespace, workers: Workers, topology: str, method: str) -> dict[str, Any]:
    strategy = {"local_steps": LOCAL_STEPS, "delay_steps": DELAYS[method], "topology": topology}
    plan = {"model": MODEL, "rounds": options.rounds, "strategy": strategy}
    run = run_of(workers.run("benchmarks.harness.fits:fit", plan, rate_mbit=options.rate_mbit))
    return {"round_s": round_s(run)[SETTLED:], "compute_s": compute_s(run), "exchange_s": exchange_s(run)}


def _row(
    options: argparse.Namespace, clients: int, case: Case, runs: list[dict[str, Any]], probed: dict[str, Any]
) -> dict[str, Any]:
    topology, method = case
    row: dict[str, Any] = {"clients": clients, "topology": topology, "method": method, "runs": runs, "probe": probed}
    nominal_bps = NOMINAL_GOODPUT * options.rate_mbit * 1e6
    row["nominal"] = _planned(options, clients, case, Links(nominal_bps, nominal_bps))
    if not probed["failed"]:
        row["probed"] = _planned(options, clients, case, Links(**probed[topology]))
    good = [run for run in runs if not run["failed"]]
    if good:
        row["round_s"] = median(one_s for run in good for one_s in run["round_s"])
        row["exchange_s"] = median(m for run in good for m in run["exchange_s"])
        row["compute_s"] = median(c for run in good for c in run["compute_s"])
        for way in ("nominal", "probed"):
            if way in row:
                row[f"measured_over_{way}"] = row["round_s"] / row[way]["round_s"]
    print({name: value for name, value in row.items() if name != "runs"}, flush=True)
    return row


def _planned(options: argparse.Namespace, clients: int, case: Case, links: Links) -> dict[str, float]:
    """The planner's M, and its seconds per round."""
    topology, method = case
    settings = Settings(local_steps=LOCAL_STEPS, delay_steps=DELAYS[method], topology=topology)
    times = round_times([LOCAL_STEPS * STEP_S] * 2, [planned_exchange_s(BLOCK_SCALARS, clients, settings, links)] * 2)
    return {"exchange_s": times.exchange_s, "round_s": getattr(times, f"{method}_s")}


if __name__ == "__main__":
    main()
