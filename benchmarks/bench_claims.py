"""The paper's claim at this scale: ParaBlock matches FedBCD's loss at equal samples and takes less time.

Four clients fine-tune SmolLM2-135M-Instruct, cut to its first layers, on GSM8K and on an instruction set. The data is
split iid and by Dirichlet(0.1) over labels (for GSM8K: the number of calculations in an answer). ParaBlock is compared
with FedBCD, FedAvg, LoRA and FedCyBGD, and with variants of itself: another order, value in flight, K or delay.
AdamW's learning rate is chosen per method, the best of three or four on a separate seed, and decays linearly to zero.
Every client trains on the same number of examples in every method. Further pairs of runs use the whole model, or half,
twice and four times as many steps. Every run is a real Lightning fit over gloo on unshaped links. Seconds at 100 Mbit/s
are planned, not timed: the planner's formula applied to each round's processor seconds and bytes.

Finished runs are kept in results/claims.json, each with the commit that produced it. A second start, even in a fresh
checkout, continues after them and makes only the missing runs. Without that file it starts from scratch.

    python -m benchmarks.bench_claims --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl \
        --instruct-train-file instruct_train.jsonl --instruct-test-file instruct_test.jsonl
    python -m benchmarks.bench_claims --table
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.claims import data as claims_data
from benchmarks.claims.figures import RATE_MBIT, combined, markdown, table
from benchmarks.claims.methods import BATCH_SIZE, METHODS, N_CLIENTS, SIZES, Run, queue
from benchmarks.harness import sets
from benchmarks.harness.publish import folder, parser, publish
from benchmarks.harness.rate_search import best_rate
from benchmarks.harness.results import git_state, read_result
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.harness.workers import RunFailedError, Workers, attempt

QUESTION = "claims"
LIMIT_S = 4 * 3600.0
Records = dict[Run, dict[str, Any]]


def main() -> None:
    """Parse the options; show the table, or run what is missing and write the result."""
    made = parser(__doc__)
    sets.add_options(made)
    made.add_argument(
        "--sizes",
        default=",".join(name for name in SIZES if name != "quick"),
        help=f"comma-separated list of {', '.join(SIZES)}",
    )
    made.add_argument("--table", action="store_true", help="only print the table of the runs so far")
    options = made.parse_args()
    if options.quick:
        options.sizes = "quick"
    if options.table:
        print(markdown(read_result(folder(options) / f"{QUESTION}.json")["values"]["table"]))
        return
    runs = [run for size in options.sizes.split(",") for run in queue(size)]
    missing = missing_of(runs, sets.missing(options))
    wanted = [run for run in runs if not {run.method, run.data} & set(missing)]
    _make_all(options, wanted, missing)


def missing_of(runs: list[Run], missing_data: Mapping[str, str]) -> dict[str, str]:
    """Unavailable methods and data sets, each with the reason; their runs are left for a later start."""
    options = {name: METHODS[name].missing() for name in dict.fromkeys(run.method for run in runs)}
    named = {name: f"this version has no option {', '.join(lacking)}" for name, lacking in options.items() if lacking}
    return named | dict(missing_data)


def _make_all(options: argparse.Namespace, runs: list[Run], missing: Mapping[str, str]) -> None:
    everything = [run for size in SIZES if options.quick == (size == "quick") for run in queue(size)]
    done = {} if options.quick else kept_runs(folder(options) / f"{QUESTION}.json")
    print(f"{len(done)} of {len(everything)} runs are there; missing: {dict(missing)}", flush=True)

    def show() -> None:
        # In the queue's order, regardless of the order in which runs finished.
        _publish(options, {run: done[run] for run in everything if run in done}, missing, len(everything))

    if done:
        show()
    with tempfile.TemporaryDirectory() as scratch, Workers(N_CLIENTS, linked=False) as workers:
        sources = claims_data.sources(options, Path(scratch))
        for run in [run for run in runs if run not in done]:
            done[run] = asdict(run) | attempt(_make, workers, run, sources[run.data], done)
            if not done[run]["failed"]:
                losses = [round(loss, 4) for _, loss in done[run]["held_out_loss"]]
                print(f"{run}: {losses} in {done[run]['seconds']:.0f} s", flush=True)
            show()  # after each run: hours pass between the first and the last


def kept_runs(path: Path) -> Records:
    """The finished runs in a result file, without those that failed; empty if there is no such file."""
    if not path.exists():
        return {}
    values = read_result(path)["values"]
    names = [field.name for field in fields(Run)]
    records = [record for record in (*values["runs"], *values["trials"]) if not record["failed"]]
    return {Run(**{name: record[name] for name in names}): record for record in records}


def _make(workers: Workers, run: Run, source: dict[str, Any], done: Records) -> dict[str, Any]:
    size, method = SIZES[run.size], METHODS[run.method]
    steps = size.steps if run.trial_rate is None else size.trial_steps
    every = size.evaluate_every_steps if run.trial_rate is None else steps
    rate = _learning_rate(run, done)
    strategy = {"blocks": size.blocks, "local_steps": size.local_steps, "uneven_clients": "shorten", **method.strategy}
    model = {"model": PACKAGE, "layers": size.layers, "learning_rate": rate, "falling_steps": steps * method.turns}
    plan = {
        "seed": run.seed,
        "steps": steps * method.turns,
        "evaluate_every_steps": every * method.turns,
        "model": {**model, **method.model},
        "strategy": strategy,
        "data": claims_data.module_options(run, size, source),
    }
    answers = workers.run("benchmarks.claims.job:train", plan, rate_mbit=None, limit_s=LIMIT_S)
    local_steps = strategy["local_steps"]
    chosen = {"commit": git_state()["sha"], "learning_rate": rate, "local_steps": local_steps}
    facts = asdict(run) | chosen | {"delay_steps": strategy.get("delay_steps", local_steps), "options": strategy}
    record = combined(answers, facts, method.turns)
    if set(record["examples"]) != {steps * BATCH_SIZE}:
        raise RunFailedError(f"not equal samples: {record['examples']} instead of {steps * BATCH_SIZE} per client")
    return record


def _learning_rate(run: Run, done: Records) -> float:
    """The trial's own rate, the size's, or the best of the method's trials, which come earlier in the queue."""
    fixed = run.trial_rate or SIZES[run.size].learning_rate
    if fixed is not None:
        return fixed
    named, factor = run.method, METHODS[run.method].rate_factor
    while not METHODS[named].learning_rates:
        named = METHODS[named].baseline
    tried = [other for other in done if other.trial_rate and (other.size, other.method) == (run.size, named)]
    try:
        return factor * best_rate(done[other] for other in tried)
    except ValueError as error:
        raise RunFailedError(f"{named}: {error}") from error


def _publish(options: argparse.Namespace, done: Records, missing: Mapping[str, str], n_runs: int) -> None:
    runs = [made for run, made in done.items() if run.trial_rate is None]
    publish(
        QUESTION,
        options,
        configuration={"model": PACKAGE, "batch_size": BATCH_SIZE, "clients": N_CLIENTS}
        | {name: asdict(SIZES[name]) for name in dict.fromkeys(run.size for run in done)},
        seeds=sorted({made["seed"] for made in runs}),
        network={"links": "not shaped: the network changes no weight", "planned_rate_mbit_s": RATE_MBIT},
        values={
            "seconds": "planned_s: the planner's formula, from processor seconds and bytes; not timed",
            "table": table(runs),
            "runs": runs,
            "trials": [made for run, made in done.items() if run.trial_rate is not None],
            "missing": dict(missing),
            "runs_left": n_runs - sum(not made["failed"] for made in done.values()),
        },
    )


if __name__ == "__main__":
    main()
