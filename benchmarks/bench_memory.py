"""How much memory does ParaBlock need compared with full fine-tuning and LoRA, and does the planner predict it?

Every measurement uses a fresh process: its peak resident memory above the level before the model was loaded. ParaBlock
runs with two clients; AdamW on all parameters and LoRA (peft, rank 16, all linear layers) are plain Lightning. The
planner's formula covers everything except activations, which are measured by a plain forward and backward loop, one
block at a time.

``budgets``: two clients with a link of their own train with ``blocks: auto`` within several budgets.

    python -m benchmarks.bench_memory
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from statistics import median
from typing import Any

from benchmarks.harness.publish import folder, parser, publish, refuse_unknown
from benchmarks.harness.results import read_result
from benchmarks.harness.workers import Workers, attempt
from benchmarks.memory import budgets
from lightning_parablock.planning.memory import ModelSize, memory_parts
from lightning_parablock.settings import Settings

QUESTION = "memory"
METHODS = {"parablock": 2, "adamw": 1, "lora": 1}
"""Method -> number of processes."""
STRATEGY: dict[str, Any] = {"local_steps": 1, "blocks": 8, "seed": 0}
PEAKS = ("loading_peak_bytes", "training_peak_bytes")


def main() -> None:
    """Measure the methods alternately, compare with the formula, and write the result."""
    made = parser(__doc__)
    made.add_argument("--repeats", type=int, default=5, help="fresh processes per method, interleaved")
    made.add_argument("--rounds", type=int, default=10, help="rounds of ParaBlock; enough to visit every block")
    made.add_argument("--steps", type=int, default=3, help="training steps of the other methods")
    made.add_argument("--tokens", type=int, default=128, help="tokens per sequence")
    made.add_argument("--batch-size", type=int, default=2, help="sequences per step")
    made.add_argument("--layers", type=int, default=None, help="number of layers of the model to keep; default: all")
    made.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated list of {', '.join(PARTS)}")
    made.add_argument("--budgets-mb", default="2400,3200,4000", help="budgets: comma-separated list of megabytes")
    made.add_argument("--budget-rounds", type=int, default=14, help="budgets: rounds of each run")
    made.add_argument("--rate-mbit", type=float, default=100.0, help="budgets: rate of every link, both directions")
    options = made.parse_args()
    if options.quick:
        options.repeats, options.tokens, options.layers = 1, 32, 8
        options.budgets_mb, options.budget_rounds = "1500", 5
    refuse_unknown(made, options.parts, PARTS)
    path = folder(options) / f"{QUESTION}.json"
    values = read_result(path)["values"] if path.exists() else {}
    for part in options.parts.split(","):
        values |= PARTS[part](options)
    publish(
        QUESTION,
        options,
        configuration={"strategy": STRATEGY, "processes": METHODS},
        seeds=[0],
        network={"hosts": 2, "links": f"not shaped; budgets: {options.rate_mbit:g} Mbit/s"},
        values=values,
    )


def _methods(options: argparse.Namespace) -> dict[str, Any]:
    loops = [_one(options, "benchmarks.memory.job:activations", 1, "activations") for _ in range(options.repeats)]
    runs = [
        {"method": name} | _one(options, "benchmarks.memory.job:measure", processes, name)
        for _ in range(options.repeats)
        for name, processes in METHODS.items()
    ]
    return {"activations": loops, "runs": runs, "medians": _medians(loops, runs)}


def _budgets(options: argparse.Namespace) -> dict[str, Any]:
    found = []
    for budget_mb in map(float, options.budgets_mb.split(",")):
        found.append({"budget_mb": budget_mb} | attempt(budgets.measure, options, budget_mb))
        print({name: value for name, value in found[-1].items() if name != "run"}, flush=True)
    return {"budgets": found}


def _one(options: argparse.Namespace, job: str, processes: int, method: str) -> dict[str, Any]:
    """One measurement in fresh processes."""
    model = {"kind": "smollm2", "layers": options.layers, "tokens": options.tokens, "batch_size": options.batch_size}
    rounds = options.rounds if method == "parablock" else options.steps
    plan = {"method": method, "model": model, "rounds": rounds, "strategy": STRATEGY}
    with Workers(processes, linked=False) as workers:
        found = attempt(_answers, workers, job, plan)
    print(method, found.get("clients", found), flush=True)
    return found


def _answers(workers: Workers, job: str, plan: dict[str, Any]) -> dict[str, Any]:
    return {"clients": workers.run(job, plan, rate_mbit=None)}


def _medians(loops: list[dict[str, Any]], runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Median peak of each method and the formula's prediction, in bytes."""
    medians: dict[str, Any] = {}
    for name in METHODS:
        good = [client for run in runs if run["method"] == name and not run["failed"] for client in run["clients"]]
        if good:
            medians[name] = {field: median(client[field] for client in good) for field in ("base_bytes", *PEAKS)}
    found = [loop["clients"][0] for loop in loops if not loop["failed"]]
    parallel = [run["clients"][0] for run in runs if run["method"] == "parablock" and not run["failed"]]
    if found and parallel:
        blocks = [median(values) for values in zip(*(one["activations_bytes"] for one in found), strict=True)]
        formula = _formula(parallel[0]["numels"], parallel[0]["weights_bytes"])
        total = sum(formula.values()) + max(blocks[:-1])
        medians["formula"] = {"parts_bytes": formula, "activations_bytes": max(blocks[:-1]), "total_bytes": total}
        medians["peak_over_formula"] = medians["parablock"]["training_peak_bytes"] / total
        print("peak over formula:", medians["peak_over_formula"], flush=True)
    return medians


def _formula(numels: list[int], weights_bytes: int) -> dict[str, int]:
    settings = Settings(local_steps=STRATEGY["local_steps"], delay_steps=STRATEGY["local_steps"])
    parts = memory_parts(ModelSize(tuple(numels), weights_bytes), METHODS["parablock"], settings)
    return {part.purpose: part.size_bytes for part in parts}


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {"methods": _methods, "budgets": _budgets}

if __name__ == "__main__":
    main()
