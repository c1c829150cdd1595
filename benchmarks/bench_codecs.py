"""What do the codecs cost in time and in loss, and how many bytes do they save?

Speed: one thread encodes and decodes parts of 262,144 scalars; a plain copy is timed for comparison. Bytes: two hosts
exchange blocks of 14 million scalars of SmolLM2-135M at delay 0. Bytes are taken from the kernel's socket counters and
from the round records, seconds per round at 1 Gbit/s and at 100 Mbit/s. Loss: GSM8K with the cut model, three seeds.
Residuals: the same model, each block visited many times; the norm of what error feedback has kept back over that of the
delta it is added to, by visit. Beside: what some codecs leave out of the same deltas, those of one uncompressed run.

    python -m benchmarks.bench_codecs --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
"""

from __future__ import annotations

import argparse
from statistics import fmean, median
from typing import Any

from benchmarks.codecs.visits import residual_over_delta
from benchmarks.harness import gsm8k
from benchmarks.harness.publish import folder, parser, publish
from benchmarks.harness.run_figures import compute_s, exchange_s, run_of
from benchmarks.harness.smollm2 import last_layers
from benchmarks.harness.workers import Workers, attempt

QUESTION = "codecs"
CODECS = ("none", "bf16", "int8", "int4", "topk", "sparse", "low_rank")
RESIDUALS: dict[str, dict[str, Any]] = {
    "none": {"compression": "none"},
    "int4": {"compression": "int4"},
    "topk": {"compression": "topk"},
    "sparse": {"compression": "sparse"},
    "sparse of 16": {"compression": "sparse", "settings": {"group": 16}},
    "sparse, decay 0.9": {"compression": "sparse", "settings": {"decay": 0.9}},
    "low_rank": {"compression": "low_rank"},
    "low_rank of 16": {"compression": "low_rank", "settings": {"rank": 16}},
    "low_rank, decay 0.9": {"compression": "low_rank", "settings": {"decay": 0.9}},
}
"""Whose residuals are measured: a name, and its own settings."""
BESIDE: dict[str, dict[str, Any]] = {
    "sparse": {"compression": "sparse"},
    "low_rank": {"compression": "low_rank", "settings": {"rank": 8}},
    "low_rank of 16": {"compression": "low_rank", "settings": {"rank": 16}},
}
"""Codecs that see the deltas of one uncompressed run."""
RANKS = (8, 16)
MODEL: dict[str, Any] = {"kind": "smollm2", "layers": None, "tokens": 16, "blocks": last_layers(8, together=4)}
QUIET = {"heartbeat_s": 500.0, "exchange_timeout_s": 1000.0}
"""Keeps heartbeats out of the byte counts."""


def main() -> None:
    """Measure speed, bytes, loss and residuals, and write the result."""
    made = parser(__doc__)
    gsm8k.add_options(made)
    made.add_argument("--repeats", type=int, default=9, help="timed passes over all codecs")
    made.add_argument("--rates", default="1000,100", help="comma-separated list of link rates in Mbit/s")
    made.add_argument("--rounds", type=int, default=7, help="rounds per run; the first is not counted")
    made.add_argument("--passes", type=int, default=2, help="runs of each codec and rate, interleaved")
    made.add_argument("--size", default="cut", help=f"size of the training runs: {', '.join(gsm8k.SIZES)}")
    made.add_argument("--visits", type=int, default=12, help="visits of each block for the residuals")
    options = made.parse_args()
    if options.quick:
        options.repeats, options.rates, options.rounds, options.passes = 3, "1000", 3, 1
        options.size, options.visits = "quick", 3
    values: dict[str, Any] = {"speed_gb_s": _speed(options), "exchanges": _exchanges(options)}
    values["low_rank_speed"] = _low_rank_speed(options)
    methods = {name: {"compression": name} for name in (("none", "int8") if options.quick else CODECS)}
    runs = gsm8k.runs_of(methods, options.size, options, folder(options) / "codecs_runs")
    values |= {"losses": runs, "loss_over_none": _loss_over_none(runs)}
    values["residuals"] = _residuals(options)
    values["beside"] = _beside(options)
    print("final loss over that of none:", values["loss_over_none"], flush=True)
    publish(
        QUESTION,
        options,
        configuration={"model": MODEL} | gsm8k.configuration([options.size]),
        seeds=sorted({run["seed"] for run in runs}),
        network={"hosts": 2, "rates_mbit_s": options.rates, "shaped": "both directions of every host; losses: not"},
        values=values,
    )


def _speed(options: argparse.Namespace) -> dict[str, Any]:
    with Workers(1, linked=False) as workers:
        found = attempt(workers.first_answer, "benchmarks.codecs.job:speed", {"repeats": options.repeats})
    for name in [name for name in found if name != "failed"]:
        print(name, {way: round(median(values), 2) for way, values in found[name].items()}, "GB/s", flush=True)
    return found


def _low_rank_speed(options: argparse.Namespace) -> dict[str, Any]:
    plan = {"ranks": RANKS, "repeats": options.repeats}
    with Workers(1, linked=False) as workers:
        found = attempt(lambda: {"rows": workers.first_answer("benchmarks.codecs.low_rank:speed", plan)})
    for row in found.get("rows", ()):
        ways = {way: round(median(row[way]), 2) for way in ("encode", "expand", "next_bases")}
        of_matrix = f"{row['shape']}, {'left' if row['sends_left'] else 'right'} factor of rank {row['rank']}:"
        print(of_matrix, ways, "GB/s", flush=True)
    return found


def _residuals(options: argparse.Namespace) -> list[dict[str, Any]]:
    given = {"size": options.size, "visits": options.visits, "seed": 0}
    given |= {"train": options.train_file, "test": options.test_file, "settings": {}}
    rows: list[dict[str, Any]] = []
    with Workers(1, linked=False) as workers:
        for name in ("none", "sparse", "low_rank") if options.quick else RESIDUALS:
            plan = given | RESIDUALS[name]
            made = attempt(workers.first_answer, "benchmarks.codecs.visits:train", plan, limit_s=gsm8k.LIMIT_S)
            row: dict[str, Any] = {"codec": name, **made}
            if not row["failed"]:
                row["residual_over_delta"] = residual_over_delta(row["rows"])
                print(name, [round(one, 2) for one in row["residual_over_delta"]], row["held_out_loss"], flush=True)
            rows.append(row)
    return rows


def _beside(options: argparse.Namespace) -> dict[str, Any]:
    plan = {"size": options.size, "visits": options.visits, "seed": 0, "codecs": BESIDE}
    plan |= {"train": options.train_file, "test": options.test_file}
    with Workers(1, linked=False) as workers:
        return attempt(workers.first_answer, "benchmarks.codecs.beside:train", plan, limit_s=gsm8k.LIMIT_S)


def _exchanges(options: argparse.Namespace) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with Workers(2) as workers:
        for rate_mbit in map(int, options.rates.split(",")):
            runs = [(name, attempt(_run, options, workers, name, rate_mbit)) for name in _turns(options)]
            rows += [_row(name, rate_mbit, [run for other, run in runs if other == name]) for name in CODECS]
    by_key = {(row["codec"], row["rate_mbit"]): row for row in rows}
    for row in rows:
        _compare(row, by_key["none", row["rate_mbit"]])
    return rows


def _turns(options: argparse.Namespace) -> list[str]:
    return [name for _ in range(options.passes) for name in CODECS]


def _run(options: argparse.Namespace, workers: Workers, codec: str, rate_mbit: int) -> dict[str, Any]:
    strategy = {"local_steps": 1, "delay_steps": 0, "compression": codec, **QUIET}
    plan = {"model": MODEL, "rounds": options.rounds, "strategy": strategy, "sockets": True}
    answers = workers.run("benchmarks.harness.fits:fit", plan, rate_mbit=rate_mbit)
    run = run_of(answers, delay_steps=0, rate_mbit=rate_mbit)
    return {
        "exchange_s": exchange_s(run)[1:],
        "compute_s": compute_s(run)[1:],
        # Over the rounds between the first count and the last one, i.e. all but the last round of the run.
        "socket_bytes": [
            answer["sockets"][-1]["sent_bytes"] - answer["sockets"][0]["sent_bytes"] for answer in answers
        ],
        "record_bytes": [sum(answer["rounds"]["upload_bytes"][:-1]) for answer in answers],
        "rounds_counted": options.rounds - 1,
    }


def _row(codec: str, rate_mbit: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    row: dict[str, Any] = {"codec": codec, "rate_mbit": rate_mbit, "runs": runs}
    good = [run for run in runs if not run["failed"]]
    if good:
        row["exchange_s"] = median(m for run in good for m in run["exchange_s"])
        row["round_s"] = median(c + m for run in good for c, m in zip(run["compute_s"], run["exchange_s"], strict=True))
        for name in ("socket_bytes", "record_bytes"):
            row[name] = median(fmean(run[name]) / run["rounds_counted"] for run in good)
    return row


def _compare(row: dict[str, Any], none: dict[str, Any]) -> None:
    if "socket_bytes" in row and "socket_bytes" in none:
        row["times_fewer_bytes"] = none["socket_bytes"] / row["socket_bytes"]
        row["times_faster_exchange"] = none["exchange_s"] / row["exchange_s"]
    print({name: value for name, value in row.items() if name != "runs"}, flush=True)


def _loss_over_none(runs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """Final loss divided by that of ``none`` at the same seed: codec -> one value per seed for which both finished."""
    final = {(run["method"], run["seed"]): run["held_out_loss"][-1][1] for run in runs if not run["failed"]}
    return {
        codec: [
            loss / final["none", seed]
            for (name, seed), loss in final.items()
            if name == codec and ("none", seed) in final
        ]
        for codec in CODECS
        if codec != "none"
    }


if __name__ == "__main__":
    main()
