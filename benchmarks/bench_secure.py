"""What do secure sums cost in time, bytes and loss, and what does Flower's SecAgg+ need for the same sum?

Cost: three hosts with links of 100 Mbit/s, at M = C and M < C, in pairs of alternating order: secure sums of one byte
against int8, of two bytes against bf16. Computation is a timed sleep, or SmolLM2-135M with a core per host as far as
there are. The bytes of every round are compared with those that docs/method.md states. Loss: GSM8K with the cut model,
three seeds, AdamW, against exchanges without compression; and the share of values that a sum could not hold. Peers: one
aggregation of a vector of the same length by the same number of clients, this package and Flower in turns.

Flower's requirements and this project's exclude each other, so it has an environment of its own, which `make bench`
makes; without SuperLink and SuperNodes, whose polling would take longer than its protocol. It restores the sum when
clients are lost, which this package does not: it drops the exchange.

Everything is saved to results/secure.json as soon as it is made; a second start makes what is missing or has failed.

    python -m benchmarks.bench_secure --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

from benchmarks.harness import gsm8k
from benchmarks.harness.publish import folder, parser, publish, refuse_unknown
from benchmarks.harness.results import read_result, without_place, write_result
from benchmarks.secure import cost, loss, peers
from benchmarks.secure.arms import ARMS, BASELINES, SITES
from benchmarks.secure.figures import loss_figures
from benchmarks.secure.flower import default_python

QUESTION = "secure"
State = dict[str, Any]
Part = Callable[[argparse.Namespace, State, Callable[[], None]], None]
PARTS: dict[str, Part] = {"cost": cost.measure, "loss": loss.train, "peers": peers.measure}


def main() -> None:
    """Make what is missing; the result is written after each run, or pair of runs."""
    options = _options()
    path = folder(options) / f"{QUESTION}.json"
    state: State = read_result(path)["values"] if path.exists() and not options.again else {}
    for part in PARTS:
        state.setdefault(part, {})
    for part in options.parts.split(","):
        PARTS[part](options, state[part], lambda: _save(options, state))
    publish(QUESTION, options, **_said(options, state))


def _options() -> argparse.Namespace:
    made = parser(__doc__)
    gsm8k.add_options(made)
    made.add_argument("--parts", default=",".join(PARTS), help=f"comma-separated list of {', '.join(PARTS)}")
    made.add_argument("--rate-mbit", type=float, default=100.0, help="cost: rate of every link, both directions")
    made.add_argument("--computations", default="sleep,real", help="cost: comma-separated list of sleep, real")
    made.add_argument("--topologies", default="sharded,star", help="cost: comma-separated list")
    made.add_argument("--ratios", default="1,0.5", help="cost: comma-separated list of M/C")
    made.add_argument("--pairs", type=int, default=5, help="cost: pairs of runs per row")
    made.add_argument("--rounds", type=int, default=24, help="cost: rounds per run")
    made.add_argument("--scalars", type=int, default=None, help="cost: scalars of a block with sleep; default 4 Mi")
    made.add_argument("--size", default="cut", help=f"loss: size of the training runs: {', '.join(gsm8k.SIZES)}")
    made.add_argument("--peer-scalars", type=int, default=1 << 22, help="peers: length of the vector")
    made.add_argument("--peer-rates", default="100,1000", help="peers: comma-separated list of link rates in Mbit/s")
    made.add_argument("--aggregations", type=int, default=4, help="peers: per run; the first one is not counted")
    made.add_argument("--repeats", type=int, default=5, help="peers: runs of each system and link rate")
    made.add_argument("--flower-python", default=default_python(), help="peers: Python that has flwr")
    made.add_argument("--again", action="store_true", help="forget what there is, also what --parts leaves out")
    options = made.parse_args()
    if options.quick:
        options.again = True
        options.computations, options.topologies, options.ratios = "sleep", "sharded", "1"
        options.pairs, options.rounds, options.scalars, options.size = 1, 6, 1 << 18, "quick"
        options.peer_scalars, options.peer_rates, options.aggregations, options.repeats = 1 << 18, "1000", 2, 1
    refuse_unknown(made, options.parts, PARTS)
    return options


def _save(options: argparse.Namespace, state: State) -> None:
    given = {name: without_place(value) if isinstance(value, str) else value for name, value in vars(options).items()}
    said = _said(options, state)
    write_result(QUESTION, **(said | {"configuration": given | said["configuration"]}), directory=folder(options))


def _said(options: argparse.Namespace, state: State) -> dict[str, Any]:
    state["loss_over_none"] = loss_figures(list(state["loss"].values()), loss.REFERENCE)
    return {
        "configuration": {"sites": SITES, "arms": ARMS, "baselines": BASELINES, "models": cost.MODELS}
        | gsm8k.configuration([options.size]),
        "seeds": list(gsm8k.SIZES[options.size].seeds),
        "network": {
            "hosts": SITES,
            "rate_mbit_s": options.rate_mbit,
            "peer_rates_mbit_s": options.peer_rates,
            "shaped": "both directions of every host, in Flower's star of its server, too; losses: not",
        },
        "values": state,
    }


if __name__ == "__main__":
    main()
