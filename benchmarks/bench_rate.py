"""Does ParaBlock's mean squared gradient decay as 1 / sqrt(T), like that of FedBCD?

The package's own round engine runs plain SGD on a smooth non-convex problem with known smoothness, noise and
heterogeneity (benchmarks/rate/problem.py): one run per T, with the step size that the theorem prescribes. Each run
yields the mean over its rounds of |grad f|^2 at the committed model. From these follow log-log slopes, the price of one
round of staleness, and the speed-up from more clients.

    python -m benchmarks.bench_rate
"""

from __future__ import annotations

import argparse
import itertools
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from typing import Any

import torch

from benchmarks.harness.publish import parser, publish
from benchmarks.rate.figures import FEDBCD, PARABLOCK, Row, leading_bound, price, slope, speedup
from benchmarks.rate.problem import Constants, Problem
from benchmarks.rate.run import Run, mean_squared_gradient
from lightning_parablock.federation.schedule import derive_seed

QUESTION = "rate"
CONSTANTS = Constants()


def main() -> None:
    """Run every configuration, fit the slopes, and write the result."""
    made = parser(__doc__)
    made.add_argument("--clients", default="2,4,16", help="comma-separated list of N, each even")
    made.add_argument("--local-steps", default="2,8", help="comma-separated list of K")
    made.add_argument("--heterogeneity", default="0,8,24", help="comma-separated list of zeta")
    made.add_argument("--rounds", default="32,64,128,256,512,1024,2048,4096", help="comma-separated list of T")
    made.add_argument("--fit-from", type=int, default=256, help="slopes use T from here on, and from 4 N K on")
    made.add_argument(
        "--replicas", type=int, default=32, help="number of problems, each with its own targets, signs and noise"
    )
    made.add_argument("--seed", type=int, default=0, help="random seed")
    made.add_argument("--jobs", type=int, default=2, help="parallel processes, one core each")
    options = made.parse_args()
    if options.quick:
        options.clients, options.local_steps, options.heterogeneity = "2,4", "2", "8"
        options.rounds, options.fit_from, options.replicas = "32,64", 32, 4
    rows = _all_rows(options)
    constants = _constants(options)
    publish(
        QUESTION,
        options,
        configuration={"constants": asdict(CONSTANTS), "step_size": "sqrt(N / (K T)) / L", "block_order": "shuffle"},
        seeds=[options.seed],
        network={},
        values={"constants": constants, "rows": rows, **_figures(options, rows, constants)},
    )


def _numbers(given: str) -> list[int]:
    return [int(number) for number in given.split(",")]


def _problem(options: argparse.Namespace, clients: int) -> Problem:
    zetas = _numbers(options.heterogeneity)
    return Problem(CONSTANTS, heterogeneity=zetas, clients=clients, replicas=options.replicas, seed=options.seed)


def _all_rows(options: argparse.Namespace) -> list[Row]:
    clients = sorted(_numbers(options.clients), reverse=True)  # longest runs first, so that no core idles at the end
    settings = itertools.product(clients, _numbers(options.local_steps), (FEDBCD, PARABLOCK))
    with ProcessPoolExecutor(options.jobs, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        found = pool.map(partial(_rows, options), *zip(*settings, strict=True))
        return sorted(itertools.chain.from_iterable(found), key=lambda row: (row["clients"], row["local_steps"]))


def _rows(options: argparse.Namespace, clients: int, local_steps: int, method: str) -> list[Row]:
    """One row per zeta."""
    problem, rounds = _problem(options, clients), _numbers(options.rounds)
    # Runs of different lengths are independent; the two methods of one length have the same noise.
    seeds = [derive_seed(options.seed, "rate", clients, local_steps, t) for t in rounds]
    delay_steps = 0 if method == FEDBCD else local_steps
    runs = [Run(t, local_steps, delay_steps, seed) for t, seed in zip(rounds, seeds, strict=True)]
    means = torch.stack([mean_squared_gradient(problem, run) for run in runs], dim=1)
    names = {"method": method, "clients": clients, "local_steps": local_steps}
    print(names, [round(mean, 3) for mean in means.mean((0, 2)).tolist()], flush=True)
    return [
        names | {"heterogeneity": zeta, "rounds": rounds, "mean_squared_gradient": of_zeta.tolist()}
        for zeta, of_zeta in zip(problem.heterogeneity, means, strict=True)
    ]


def _constants(options: argparse.Namespace) -> dict[str, Any]:
    problem = _problem(options, 2)
    return asdict(CONSTANTS) | {
        "smoothness": CONSTANTS.smoothness,
        "client_smoothness": {zeta: CONSTANTS.client_smoothness(zeta) for zeta in problem.heterogeneity},
        "start_value": float(problem.value(problem.start).mean()),
        "start_squared_gradient": float(problem.gradient(problem.start).square().sum(-1).mean()),
    }


def _figures(options: argparse.Namespace, rows: list[Row], constants: dict[str, Any]) -> dict[str, Any]:
    """Slope and bound of every row, price of every pair of methods, speed-up over the smallest number of clients."""
    by_key = {(r["method"], r["clients"], r["local_steps"], r["heterogeneity"]): r for r in rows}
    fewest = min(row["clients"] for row in rows)
    found: dict[str, list[Any]] = {"slopes": [], "bounds": [], "prices": [], "speedups": []}
    for (method, clients, local_steps, zeta), row in by_key.items():
        names = {"clients": clients, "local_steps": local_steps, "heterogeneity": zeta}
        fitted = slope(row, at_least_rounds=max(options.fit_from, 4 * clients * local_steps))
        found["slopes"].append({"method": method} | names | fitted)
        found["bounds"].append({"method": method} | names | {"bound": leading_bound(row, constants)})
        if method == PARABLOCK:
            found["prices"].append(names | {"by_rounds": price(row, by_key[FEDBCD, clients, local_steps, zeta])})
        if clients > fewest:
            base = by_key[method, fewest, local_steps, zeta]
            found["speedups"].append({"method": method} | names | speedup(row, base))
    return found


if __name__ == "__main__":
    main()
