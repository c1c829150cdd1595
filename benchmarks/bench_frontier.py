"""What does each method reach in a given time, memory and number of bytes?

Two clients fine-tune the whole SmolLM2-135M-Instruct on GSM8K: ParaBlock with 1, 2, 5 and 8 blocks and a codec, LoRA,
ParaBlock over LoRA, and FedAvg; the two best also on the instruction set, and the baselines with the codec. The
learning rate of each is the best of three after a fifth of the steps, on a separate seed, and stays constant. Every run
is a real Lightning fit of two processes with a core each over gloo on this machine, with the bits that it would have on
any network. What it reaches in 10, 30 and 60 minutes at 20 and 100 Mbit/s is planned from its step times and bytes, not
timed on links (benchmarks/frontier/figures.py; bench_peers has timed some of these methods).

Every run is saved to results/frontier.json as soon as it is made, the most informative first. A second start makes what
is missing, was cut, or has failed; --hours bounds each start. All of it takes about six hours on two cores.

    python -m benchmarks.bench_frontier --hours 2 --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl \
        --instruct-train-file instruct_train.jsonl --instruct-test-file instruct_test.jsonl
    python -m benchmarks.bench_frontier --table
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

from benchmarks.frontier.figures import MINUTES, RATES_MBIT, combined, missing, table, two_best
from benchmarks.frontier.methods import (
    BATCH_SIZE,
    METHODS,
    N_CLIENTS,
    SIZES,
    Run,
    Size,
    delay_steps,
    queue,
    round_steps,
)
from benchmarks.frontier.shown import markdown
from benchmarks.harness import sets
from benchmarks.harness.budget import Budget
from benchmarks.harness.publish import folder, parser, publish
from benchmarks.harness.rate_search import best_rate
from benchmarks.harness.results import git_state, read_result
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.harness.workers import RunFailedError, Workers, attempt

QUESTION = "frontier"
LIMIT_S = 3 * 3600.0
Records = dict[Run, dict[str, Any]]


def main() -> None:
    """Make the missing runs as far as time allows; the result is written after each."""
    options = _options()
    path = folder(options) / f"{QUESTION}.json"
    if options.table:
        print(_shown_again(read_result(path)["values"], options))
        return
    size_name = "quick" if options.quick else "whole"
    done = {} if options.quick else kept_runs(path, SIZES[size_name])
    print(f"{len(done)} runs are there; not made yet: {missing(done.values(), size_name)}", flush=True)
    make_all(options, size_name, done, Budget(options.hours))
    _publish(options, size_name, done)
    print(markdown(_values(done, size_name, options)))


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    sets.add_options(made)
    made.add_argument("--hours", type=float, help="start no run that would end later, and cut the last one; no limit")
    made.add_argument("--table", action="store_true", help="only print the tables and sentences for the runs so far")
    made.add_argument(
        "--step-factor", type=float, default=1.0, help="plan as if a local step took so many times as long as measured"
    )
    return made.parse_args()


def make_all(options: argparse.Namespace, size_name: str, done: Records, budget: Budget) -> None:
    """Make what ``done`` lacks and add it there, in the queue's order, until the time is up."""
    size, sources = SIZES[size_name], sets.sources(options)
    with Workers(N_CLIENTS, linked=False) as workers:
        for run in queue(size, lambda: two_best(done.values()) if "instruct" in sources else []):
            if run in done:
                continue
            if not budget.fits(expected_s(run, size, done.values())):
                print(f"{run} would end too late: start again with more --hours", flush=True)
                return
            if size.fresh and run.trial_rate is None:
                workers.close()
            made = attempt(_make, workers, run, size, sources[run.data], done, min(LIMIT_S, budget.left_s))
            if made["failed"] and not budget.fits(0.0):
                print(f"{run} was cut by --hours; the next start repeats it", flush=True)
                return
            done[run] = asdict(run) | made
            _report(run, made)
            _publish(options, size_name, done)


def expected_s(run: Run, size: Size, records: Iterable[Mapping[str, Any]]) -> float:
    """Seconds that a run will take, by those of the same method, or else of any; 0 if nothing is known."""
    known = [record for record in records if not record["failed"]]
    known = [record for record in known if record["method"] == run.method] or known
    longest_s = max((record["wall_s"] / record["settings"]["steps"] for record in known), default=0.0)
    return longest_s * _steps(run, size)


def kept_runs(path: Path, size: Size) -> Records:
    """The finished runs of a result file that have today's settings; empty if there is no such file."""
    if not path.exists():
        return {}
    values, kept = read_result(path)["values"], Records()
    names = [field.name for field in fields(Run)]
    for record in (*values["trials"], *values["runs"]):
        run = Run(**{name: record[name] for name in names})
        if record["failed"]:
            continue
        if run.method not in METHODS or record["settings"] != settings_of(run, size):
            print(f"{run} had other settings and is made again", flush=True)
            continue
        kept[run] = record
    return kept


def settings_of(run: Run, size: Size) -> dict[str, Any]:
    """Everything that decides a run but its learning rate and its files, as JSON."""
    method, share = METHODS[run.method], sets.VAL_SHARE[run.data]
    return {
        "steps": _steps(run, size),
        "evaluate_every_steps": share * size.evaluate_every_steps if run.trial_rate is None else size.trial_steps,
        "local_steps": round_steps(method, size),
        "delay_steps": delay_steps(method, size),
        "strategy": dict(method.strategy),
        "layers": size.layers,
        "lora_rank": method.lora_rank,
        "data": {
            "partition": "iid",
            "train_examples": size.steps * BATCH_SIZE,
            "val_examples": share * size.val_examples,
            "sequence_length": size.sequence_length,
            "batch_size": BATCH_SIZE,
        },
    }


def _steps(run: Run, size: Size) -> int:
    return size.steps if run.trial_rate is None else size.trial_steps


def _make(
    workers: Workers, run: Run, size: Size, source: Mapping[str, Any], done: Records, limit_s: float
) -> dict[str, Any]:
    settings, rate = settings_of(run, size), _learning_rate(run, done)
    model = {"model": PACKAGE, "layers": size.layers, "learning_rate": rate, "lora_rank": settings["lora_rank"]}
    plan = {
        "seed": run.seed,
        "steps": settings["steps"],
        "evaluate_every_steps": settings["evaluate_every_steps"],
        "evaluates_start": run.trial_rate is None,
        "model": model,
        "strategy": {"local_steps": settings["local_steps"], **settings["strategy"]},
        "data": {**source, **settings["data"], "seed": run.seed},
    }
    started_s = time.monotonic()
    answers = workers.run("benchmarks.frontier.job:train", plan, rate_mbit=None, limit_s=limit_s)
    record = combined(answers, run.data)
    if set(record["examples"]) != {settings["steps"] * BATCH_SIZE}:
        raise RunFailedError(f"not equal samples: {record['examples']} per client, {settings['steps']} steps")
    facts = {"commit": git_state()["sha"], "learning_rate": rate, "settings": settings}
    return facts | {"wall_s": time.monotonic() - started_s} | record


def _learning_rate(run: Run, done: Records) -> float:
    """The trial's own rate, or the best of the method's trials on GSM8K, which come earlier in the queue."""
    if run.trial_rate is not None:
        return run.trial_rate
    searched = METHODS[run.method].rate_of or run.method
    try:
        return best_rate(done[other] for other in done if other.trial_rate and other.method == searched)
    except ValueError as error:
        raise RunFailedError(f"{searched}: {error}") from error


def _report(run: Run, made: Mapping[str, Any]) -> None:
    if not made["failed"]:
        losses = [round(loss, 4) for _, loss in made["held_out_loss"]]
        print(f"{run}: {losses}, peak {made['peak_bytes'] / 1e6:.0f} MB, in {made['wall_s']:.0f} s", flush=True)


def _values(done: Records, size_name: str, options: argparse.Namespace) -> dict[str, Any]:
    trials = [made for run, made in done.items() if run.trial_rate is not None]
    runs = [made for run, made in done.items() if run.trial_rate is None]
    left = missing(done.values(), size_name)
    return {
        "seconds": "planned from step times and bytes (benchmarks/frontier/figures.py), not timed on links",
        "table": table(runs, trials, options.step_factor),
        "missing": left | {f"{data} data": what for data, what in sets.missing(options).items()},
        "runs": runs,
        "trials": trials,
    }


def _shown_again(values: Mapping[str, Any], options: argparse.Namespace) -> str:
    return markdown({**values, "table": table(values["runs"], values["trials"], options.step_factor)})


def _publish(options: argparse.Namespace, size_name: str, done: Records) -> None:
    publish(
        QUESTION,
        options,
        configuration={"model": PACKAGE, "clients": N_CLIENTS, "batch_size": BATCH_SIZE, "size": size_name}
        | asdict(SIZES[size_name])
        | {"methods": {name: asdict(method) for name, method in METHODS.items()}},
        seeds=list(SIZES[size_name].seeds),
        network={"links": "not shaped", "planned_rates_mbit_s": RATES_MBIT, "minutes": MINUTES},
        values=_values(done, size_name, options),
    )


if __name__ == "__main__":
    main()
