"""Compared with the alternatives: seconds and bytes to reach a held-out loss on GSM8K, and the final loss.

Two clients fine-tune SmolLM2-135M-Instruct with ParaBlock, FedBCD, FedAvg, federated LoRA, DiLoCo and Streaming DiLoCo
(torchft) and Lightning DDP: same weights, data, steps, optimizer and held-out questions. Each method is trained once
per learning rate on unshaped links (the network does not change the trajectory). Then a few rounds of each are timed on
every link, interleaved, with one core per host. Every finished run is saved to results/peers.json immediately; a second
start continues after them and retries those that failed.

    python -m benchmarks.bench_peers --train --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
    python -m benchmarks.bench_peers --time --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.harness import gsm8k
from benchmarks.harness.pictures import draw
from benchmarks.harness.publish import failures, folder, parser, refuse_unknown
from benchmarks.harness.results import read_result, write_result
from benchmarks.harness.smollm2 import PACKAGE
from benchmarks.peers import methods
from benchmarks.peers.figures import curve, round_s, table
from benchmarks.peers.job import Job
from benchmarks.peers.launch import Run, run
from benchmarks.peers.methods import LINKS, METHODS, SIZES, round_steps
from benchmarks.peers.shown import markdown

QUESTION = "peers"
SEED = 0
TARGET_LOSS = 1.1
State = dict[str, Any]
TRAIN_LIMIT_S, TIME_LIMIT_S = 3600.0, 1200.0


def main() -> None:
    """Make the missing training and timing runs; the result is written after each."""
    options = _options()
    if options.worker:
        _work(Job(**options.worker))
        return
    path = options.results / f"{QUESTION}.json"
    state: State = read_result(path)["values"] if path.exists() else {"training": {}, "timing": {}}
    if options.train or not options.time:
        for key, job in _training(options):
            _keep(options, state, "training", key, lambda job=job: run(job, None, TRAIN_LIMIT_S))
    if options.time or not options.train:
        for key, job, link in _timing(options):
            _keep(options, state, "timing", key, lambda job=job, link=link: run(job, link, TIME_LIMIT_S))
    _write(options, state)
    draw(QUESTION, options.results)
    print(markdown(state["table"]))
    if options.quick and any(failures(state)):
        raise SystemExit(1)


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    gsm8k.add_options(made)
    made.add_argument("--train", action="store_true", help="only train (hours)")
    made.add_argument("--time", action="store_true", help="only time (half an hour); needs an otherwise idle machine")
    usual = ",".join(name for name, method in METHODS.items() if not method.extra)
    made.add_argument("--methods", default=usual, help=f"comma-separated list of {', '.join(METHODS)}")
    made.add_argument("--links", default=",".join(LINKS), help="comma-separated list of links to time on")
    made.add_argument(
        "--learning-rates", type=float, nargs="+", help="learning rates to train with; default: each method's own"
    )
    made.add_argument("--results", type=Path, default=None, help="folder for the result file")
    made.add_argument("--repeats", type=int, default=1, help="timed runs per method and link")
    made.add_argument("--target", type=float, default=TARGET_LOSS, help="target held-out loss in nats per token")
    made.add_argument("--worker", type=json.loads, help=argparse.SUPPRESS)
    options = made.parse_args()
    options.size = "quick" if options.quick else "whole"
    options.results = options.results or folder(options)
    if options.quick:
        options.links = LINKS[0]
    for given, known in ((options.methods, METHODS), (options.links, LINKS)):
        refuse_unknown(made, given, known)
    return options


def _work(job: Job) -> None:
    """Run one client of one job."""
    if job.of_method.kind == "diloco":
        from benchmarks.peers import by_torchft as program
    else:
        from benchmarks.peers import by_lightning as program
    program.run(job)


def _job(
    options: argparse.Namespace, name: str, learning_rate: float, steps: int, local_steps: int, timed: bool
) -> Job:
    files = (options.train_file, options.test_file)
    return Job(name, options.size, learning_rate, SEED, steps, local_steps, timed, *files, folder="")


def _training(options: argparse.Namespace) -> Iterator[tuple[str, Job]]:
    """Every method with its first learning rate, then with its second one, and so on."""
    size = SIZES[options.size]
    rates = {name: options.learning_rates or METHODS[name].learning_rates for name in options.methods.split(",")}
    for index in range(1 if options.quick else max(map(len, rates.values()))):
        for name in rates:
            if index < len(rates[name]):
                rate, local_steps = rates[name][index], round_steps(METHODS[name], size)
                yield f"{name} {rate:g} {SEED}", _job(options, name, rate, size.steps, local_steps, timed=False)


def _timing(options: argparse.Namespace) -> Iterator[tuple[str, Job, str]]:
    """Link by link, slowest first; all methods on each, interleaved."""
    for link in reversed(options.links.split(",")):
        for repeat in range(options.repeats):
            for name in options.methods.split(","):
                timing, whole = METHODS[name].timing, round_steps(METHODS[name], SIZES[options.size])
                local_steps = min(timing.local_steps or whole, whole)
                steps = timing.rounds[LINKS.index(link)] * local_steps
                job = _job(options, name, METHODS[name].learning_rates[0], steps, local_steps, timed=True)
                if steps:
                    yield f"{name} {link} {repeat}", job, link


def _keep(options: argparse.Namespace, state: State, part: str, key: str, make: Callable[[], Run]) -> None:
    """Make a run unless it is there already, and save it immediately."""
    if key in state[part] and "failed" not in state[part][key]:
        return
    start_s = time.monotonic()
    made = state[part][key] = make()
    said = made.get("failed") or _said(part, made)
    print(f"{part} {key}: {said} ({time.monotonic() - start_s:.0f} s)", flush=True)
    _write(options, state)


def _said(part: str, made: Run) -> str:
    if part == "timing":
        return f"{round_s(made)[0]:.2f} s per round"
    return " ".join(f"{point['step']}:{point['loss']:.4f}" for point in curve(made))


def _write(options: argparse.Namespace, state: State) -> None:
    state["table"] = table(state["training"].values(), state["timing"].values(), options.target)
    write_result(
        QUESTION,
        configuration={
            "size": options.size,
            **asdict(SIZES[options.size]),
            "methods": {name: asdict(METHODS[name]) for name in METHODS},
            "target_loss": options.target,
            "batch_size": methods.BATCH_SIZE,
            "sequence_length": methods.SEQUENCE_LENGTH,
            "model": PACKAGE,
            "lora_rank": methods.LORA_RANK,
        },
        seeds=[SEED],
        network={
            "hosts": methods.N_CLIENTS,
            "links": LINKS,
            "shaped": "both directions of every host; not in training",
        },
        values=state,
        directory=options.results,
    )


if __name__ == "__main__":
    main()
