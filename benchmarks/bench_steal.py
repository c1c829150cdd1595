"""How much do the strategy, and an exchange in flight, slow down a local step?

Alone: plain Lightning and ParaBlock with one client, each in its own process on the same core, alternate step by step.
Both train the same block of SmolLM2-135M (its last layer) with everything else frozen. A pair consists of one round of
each: K steps and, for ParaBlock, the switch at the end of the round. Short: the same with a model of about 2 ms per
step: what the strategy adds to a step within a round, and to a round beyond its steps, for two values of K.

In flight: two hosts, each pinned to a core. The exchange takes about half a round, so each round has steps with and
without one. Runs at delay 0, where nothing is in flight during steps, show the effect of the position in the round.

    python -m benchmarks.bench_steal
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.harness.bootstrap import ratio_with_interval
from benchmarks.harness.publish import folder, parser, publish, refuse_unknown
from benchmarks.harness.results import read_result
from benchmarks.harness.smollm2 import last_layers
from benchmarks.harness.turn_jobs import JOBS
from benchmarks.harness.turns import WARM_UP_STEPS, round_pairs, take_turns
from benchmarks.harness.workers import RunFailedError, Workers, attempt
from benchmarks.steal.figures import added, costs, paired_rounds, slowdown

QUESTION = "steal"
LIMIT_S = 1200.0
ALONE: dict[str, Any] = {"kind": "smollm2", "layers": None, "tokens": 64, "blocks": last_layers(1)}
SHORT: dict[str, Any] = {"kind": "small", "width": 256, "layers": 8, "batch_size": 16}
SHORT_STEPS = (4, 16)
IN_FLIGHT: dict[int, dict[str, Any]] = {  # by Mbit/s: as many layers per block as make M about half a round
    100: {"kind": "smollm2", "layers": None, "tokens": 64, "blocks": last_layers(8, together=2)},
    1000: {"kind": "smollm2", "layers": None, "tokens": 64, "blocks": last_layers(16, together=16)},
}
IN_FLIGHT_STEPS = 12


def main() -> None:
    """Measure the parts and write the result."""
    made = parser(__doc__)
    made.add_argument("--launches", type=int, default=3, help="pairs of alternating processes")
    made.add_argument("--alone-rounds", type=int, default=16, help="rounds per launch")
    made.add_argument("--alone-steps", type=int, default=8, help="local steps per round (K) of these launches")
    made.add_argument("--short-rounds", type=int, default=100, help="rounds per launch with short steps")
    made.add_argument(
        "--rates", default="100,1000", help=f"comma-separated list of Mbit/s: {', '.join(map(str, IN_FLIGHT))}"
    )
    made.add_argument("--parts", default=",".join(PARTS), help="comma-separated list; what is left out stays")
    made.add_argument(
        "--pairs", type=int, default=3, help="runs with exchanges in flight, each paired with one at delay 0"
    )
    made.add_argument("--rounds", type=int, default=12, help="rounds per run")
    options = made.parse_args()
    if options.quick:
        options.launches, options.alone_rounds, options.pairs, options.rounds, options.rates = 1, 2, 1, 2, "100"
        options.short_rounds = 4
    refuse_unknown(made, options.parts, PARTS)
    parts = set(options.parts.split(","))
    path = folder(options) / f"{QUESTION}.json"
    values = read_result(path)["values"] if path.exists() and parts != set(PARTS) else {}
    values |= {part: PARTS[part](options) for part in PARTS if part in parts}
    publish(
        QUESTION,
        options,
        configuration={
            "alone": ALONE,
            "short": SHORT | {"local_steps": SHORT_STEPS},
            "in_flight": {str(rate): model for rate, model in IN_FLIGHT.items()},
            "in_flight_steps": IN_FLIGHT_STEPS,
        },
        seeds=[0],
        network={"hosts": 2, "rates_mbit_s": options.rates, "shaped": "both directions of every host"},
        values=values,
    )


# --- plain Lightning beside one client --------------------------------------------------------------------------------


def _alone(options: argparse.Namespace) -> dict[str, Any]:
    return attempt(_take_turns, options)


def _take_turns(options: argparse.Namespace) -> dict[str, Any]:
    plan = {"model": ALONE, "local_steps": options.alone_steps}
    plan["steps"] = WARM_UP_STEPS + options.alone_rounds * options.alone_steps + 1
    launches = [take_turns(JOBS, plan, limit_s=LIMIT_S) for _ in range(options.launches)]
    pairs = [pair for launch in launches for pair in round_pairs(launch, options.alone_steps)]
    found = {"ratio": ratio_with_interval(pairs), "round_s": pairs, "step_s": launches}
    print("strategy over plain Lightning:", found["ratio"], flush=True)
    return found


def _short(options: argparse.Namespace) -> dict[str, Any]:
    return {str(local_steps): attempt(_costs, options, local_steps) for local_steps in SHORT_STEPS}


def _costs(options: argparse.Namespace, local_steps: int) -> dict[str, Any]:
    plan = {"model": SHORT, "local_steps": local_steps}
    plan["steps"] = local_steps * (options.short_rounds + 2)
    launches = [take_turns(JOBS, plan, limit_s=LIMIT_S) for _ in range(options.launches)]
    rows = [row for launch in launches for row in added(launch, local_steps, dropped=WARM_UP_STEPS)]
    found = costs(rows, local_steps)
    print(f"K = {local_steps}, added by the strategy, in ms:", found, flush=True)
    return {"costs_ms": found, "added_s": rows, "step_s": launches}


# --- in flight: two hosts ---------------------------------------------------------------------------------------------


def _in_flight(options: argparse.Namespace) -> dict[str, Any]:
    found = {}
    with Workers(2) as workers:
        for rate_mbit in map(int, options.rates.split(",")):
            found[str(rate_mbit)] = attempt(_slowdown, options, workers, rate_mbit)
            print(f"in flight at {rate_mbit} Mbit/s:", found[str(rate_mbit)].get("slowdown"), flush=True)
    return found


def _slowdown(options: argparse.Namespace, workers: Workers, rate_mbit: int) -> dict[str, Any]:
    runs = [{d: _run(options, workers, rate_mbit, d) for d in (IN_FLIGHT_STEPS, 0)} for _ in range(options.pairs)]
    rows = [row for pair in runs for row in _rows(pair)]
    try:
        found = slowdown(rows)
    except ValueError as error:
        raise RunFailedError(str(error)) from error
    return {"slowdown": found, "rows_step_s": rows, "runs": [list(pair.values()) for pair in runs]}


def _rows(pair: Mapping[int, list[dict[str, Any]]]) -> list[list[float]]:
    clients = zip(pair[IN_FLIGHT_STEPS], pair[0], strict=True)
    return [row for parallel, blocking in clients for row in paired_rounds(parallel, blocking, IN_FLIGHT_STEPS)]


def _run(options: argparse.Namespace, workers: Workers, rate_mbit: int, delay_steps: int) -> list[dict[str, Any]]:
    strategy = {"local_steps": IN_FLIGHT_STEPS, "delay_steps": delay_steps}
    plan = {"model": IN_FLIGHT[rate_mbit], "rounds": options.rounds, "strategy": strategy, "steps": True}
    return workers.run("benchmarks.harness.fits:fit", plan, rate_mbit=rate_mbit)


PARTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "alone": _alone,
    "short": _short,
    "in_flight": _in_flight,
}


if __name__ == "__main__":
    main()
