"""Does the mean squared gradient of ParaBlock fall as 1 / sqrt(T), as that of FedBCD does?

The package's own round engine on a smooth non-convex problem whose smoothness, noise and heterogeneity are known
(benchmarks/rate_problem.py), plain SGD, one run a T with the step that the theorem asks for. Of each run, the mean over
its rounds of |grad f|^2 at the committed model; then slopes of log against log, the price of one round of staleness,
and what more clients save.

    python -m benchmarks.bench_rate
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import asdict
from typing import Any

import torch

from benchmarks.publish import parser, publish
from benchmarks.rate_figures import FEDBCD, PARABLOCK, Row, leading_bound, price, slope, speedup
from benchmarks.rate_problem import Constants, Problem
from benchmarks.rate_run import Run, mean_squared_gradient
from lightning_parablock.schedule import derive_seed

QUESTION = "rate"
CONSTANTS = Constants()


def main() -> None:
    """Run every configuration, fit, write the result."""
    made = parser(__doc__)
    made.add_argument("--clients", default="2,4,16", help="comma list of N, even")
    made.add_argument("--local-steps", default="2,8", help="comma list of K")
    made.add_argument("--heterogeneity", default="0,8,24", help="comma list of zeta")
    made.add_argument("--rounds", default="32,64,128,256,512,1024,2048,4096", help="comma list of T")
    made.add_argument("--fit-from", type=int, default=256, help="slopes are of T's from here and from 4 N K on")
    made.add_argument("--replicas", type=int, default=32, help="problems, each with its own targets, signs and noise")
    made.add_argument("--seed", type=int, default=0, help="of everything drawn")
    options = made.parse_args()
    if options.quick:
        options.clients, options.local_steps, options.heterogeneity = "2,4", "2", "8"
        options.rounds, options.fit_from, options.replicas = "32,64", 32, 4
    torch.set_num_threads(1)
    rows = [row for setting in _settings(options) for row in _rows(options, *setting)]
    publish(
        QUESTION,
        options,
        configuration={"constants": asdict(CONSTANTS), "step_size": "sqrt(N / (K T)) / L", "block_order": "shuffle"},
        seeds=[options.seed],
        network={},
        values={"constants": _constants(options), "rows": rows, **_figures(options, rows)},
    )


def _settings(options: argparse.Namespace) -> list[tuple[int, int, float]]:
    clients, local_steps = map(int, options.clients.split(",")), map(int, options.local_steps.split(","))
    return list(itertools.product(clients, local_steps, map(float, options.heterogeneity.split(","))))


def _problem(options: argparse.Namespace, clients: int, heterogeneity: float) -> Problem:
    return Problem(
        CONSTANTS, heterogeneity=heterogeneity, clients=clients, replicas=options.replicas, seed=options.seed
    )


def _rows(options: argparse.Namespace, clients: int, local_steps: int, heterogeneity: float) -> list[Row]:
    problem = _problem(options, clients, heterogeneity)
    rounds = [int(t) for t in options.rounds.split(",")]
    rows: list[Row] = []
    for method, delay_steps in ((FEDBCD, 0), (PARABLOCK, local_steps)):
        row: Row = {"method": method, "clients": clients, "local_steps": local_steps, "heterogeneity": heterogeneity}
        row |= {"rounds": rounds, "mean_squared_gradient": []}
        for t in rounds:
            # Runs of different lengths are independent; the two methods of one length have the same noise.
            run = Run(t, local_steps, delay_steps, derive_seed(options.seed, "rate", clients, local_steps, t))
            row["mean_squared_gradient"].append([float(f"{x:.7g}") for x in mean_squared_gradient(problem, run)])
        rows.append(row | {"bound": leading_bound(row, _constants(options))})
        means = [round(sum(x) / len(x), 3) for x in row["mean_squared_gradient"]]
        print(f"{method} N={clients} K={local_steps} zeta={heterogeneity:g}: {means}", flush=True)
    return rows


def _constants(options: argparse.Namespace) -> dict[str, Any]:
    problem = _problem(options, 2, 0.0)
    zetas = [float(zeta) for zeta in options.heterogeneity.split(",")]
    return asdict(CONSTANTS) | {
        "smoothness": CONSTANTS.smoothness,
        "client_smoothness": [CONSTANTS.client_smoothness(zeta) for zeta in zetas],
        "start_value": float(problem.value(problem.start).mean()),
        "start_squared_gradient": float(problem.gradient(problem.start).square().sum(-1).mean()),
    }


def _figures(options: argparse.Namespace, rows: list[Row]) -> dict[str, Any]:
    """Slopes of every row, prices of every pair of methods, speed-ups over the fewest clients."""
    by_key = {(r["method"], r["clients"], r["local_steps"], r["heterogeneity"]): r for r in rows}
    fewest = min(row["clients"] for row in rows)
    found: dict[str, list[Any]] = {"slopes": [], "prices": [], "speedups": []}
    for (method, clients, local_steps, zeta), row in by_key.items():
        names = {"clients": clients, "local_steps": local_steps, "heterogeneity": zeta}
        fitted = slope(row, at_least_rounds=max(options.fit_from, 4 * clients * local_steps))
        found["slopes"].append({"method": method} | names | fitted)
        if method == PARABLOCK:
            found["prices"].append(names | {"by_rounds": price(row, by_key[FEDBCD, clients, local_steps, zeta])})
        if clients > fewest:
            base = by_key[method, fewest, local_steps, zeta]
            found["speedups"].append({"method": method} | names | speedup(row, base))
    return found


if __name__ == "__main__":
    main()
