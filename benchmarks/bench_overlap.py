"""How much faster is ParaBlock than FedBCD, how much of the exchange is hidden, and how close is that to the ideal?

Hosts are network namespaces with shaped links. With 2 clients, each is pinned to a core and actually trains
SmolLM2-135M: 32 tokens per step, the attention of the last 4 layers as 4 blocks of equal size. With 4 clients there are
more clients than cores, so a timed sleep replaces the computation, and blocks have a million scalars. Both topologies
are measured. The link rate sets M/C: it is calibrated by three probes at delay 0, then adjusted after each pair. Runs
at delay 0 and at delay K alternate, and so does which of the two comes first. M = C needs many rounds, because T rounds
can be at most 2T / (T + 1) times faster.

    python -m benchmarks.bench_overlap
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from statistics import median
from typing import Any

from benchmarks.harness.pairs import measure_pairs
from benchmarks.harness.publish import folder, parser, publish
from benchmarks.harness.results import command_line, git_state, read_result
from benchmarks.harness.run_figures import Run, run_of
from benchmarks.harness.smollm2 import last_layers
from benchmarks.harness.workers import Workers, attempt
from benchmarks.overlap.calibration import Calibration

QUESTION = "overlap"
LOCAL_STEPS = 2
PROBE_MBIT = (40.0, 120.0)
MODELS: dict[str, dict[str, Any]] = {
    "real": {"kind": "smollm2", "layers": None, "tokens": 32, "blocks": last_layers(4, "self_attn")},
    "sleep": {"kind": "sleep", "step_s": 0.25, "n_blocks": 4, "block_scalars": 1 << 20},
}
NAMED_BY = ("clients", "compute", "topology", "ratio")


def main() -> None:
    """Measure every configuration; the result is written after each number of clients and topology."""
    made = parser(__doc__)
    made.add_argument(
        "--clients",
        default="2:real,4:sleep",
        help="comma-separated list of clients:computation, where computation is real or sleep",
    )
    made.add_argument("--topologies", default="sharded,star", help="comma-separated list")
    made.add_argument("--ratios", default="1,0.25,0.5,0.9,2,4", help="comma-separated list of M/C")
    made.add_argument("--pairs", type=int, default=5, help="pairs of runs at M = C")
    made.add_argument("--other-pairs", type=int, default=5, help="pairs of runs at other ratios")
    made.add_argument("--rounds", type=int, default=48, help="rounds per run at M = C")
    made.add_argument("--other-rounds", type=int, default=6, help="rounds per run at other ratios")
    made.add_argument("--probe-rounds", type=int, default=8, help="rounds per probe; the first one is not counted")
    made.add_argument("--keep", action="store_true", help="keep other configurations that are in the result file")
    options = made.parse_args()
    if options.quick:
        options.ratios, options.pairs, options.rounds, options.probe_rounds = "1", 1, 6, 3
        options.topologies = "sharded"
    path = folder(options) / f"{QUESTION}.json"
    configurations = read_result(path)["values"]["configurations"] if options.keep and path.exists() else []
    for case in options.clients.split(","):
        for topology in options.topologies.split(","):
            made_now = _measure(options, case, topology)
            again = {_name(one) for one in made_now}
            configurations = [one for one in configurations if _name(one) not in again] + made_now
            _publish(options, configurations)


@dataclass
class _Hosts:
    """Workers and the model they train."""

    workers: Workers
    topology: str
    model: dict[str, Any]

    def run(self, delay_steps: int, rate_mbit: float, rounds: int) -> Run:
        """One fit on all hosts."""
        strategy = {"local_steps": LOCAL_STEPS, "delay_steps": delay_steps, "topology": self.topology}
        plan = {"model": self.model, "rounds": rounds, "strategy": strategy}
        answers = self.workers.run("benchmarks.harness.fits:fit", plan, rate_mbit=rate_mbit)
        return run_of(answers, delay_steps=delay_steps, rate_mbit=rate_mbit)


def _name(configuration: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(configuration[name] for name in NAMED_BY)


def _publish(options: argparse.Namespace, configurations: list[dict[str, Any]]) -> None:
    publish(
        QUESTION,
        options,
        configuration={"local_steps": LOCAL_STEPS, "models": MODELS},
        seeds=[0],
        network={"shaped": "both directions of every host, rate in each configuration"},
        values={"configurations": configurations},
    )


def _measure(options: argparse.Namespace, case: str, topology: str) -> list[dict[str, Any]]:
    """All ratios of one number of clients, computation and topology, on one set of workers."""
    clients, compute = case.split(":")
    facts = {"clients": int(clients), "topology": topology, "compute": compute}
    facts |= {"git": git_state(), "command": command_line()}
    ratios = [float(ratio) for ratio in options.ratios.split(",")]
    with Workers(int(clients)) as workers:
        of = _Hosts(workers, topology, MODELS[compute])
        calibrated = attempt(_calibrate, options, of)
        print(facts, calibrated, flush=True)
        if calibrated["failed"]:
            return [facts | {"ratio": ratio} | calibrated for ratio in ratios]
        return [facts | {"ratio": ratio} | attempt(_pairs, options, of, ratio, calibrated["link"]) for ratio in ratios]


def _calibrate(options: argparse.Namespace, hosts: _Hosts) -> dict[str, Calibration]:
    """From runs at delay 0: at two fixed rates, then at the rate they predict for M = C."""
    slow, fast = (hosts.run(0, rate, options.probe_rounds) for rate in PROBE_MBIT)
    link = Calibration.of(slow, fast)
    link.learn(hosts.run(0, link.rate_mbit(1.0), options.probe_rounds))
    return {"link": link}


def _pairs(options: argparse.Namespace, hosts: _Hosts, ratio: float, link: Calibration) -> dict[str, Any]:
    """Pairs at one M/C; each pair's link rate is corrected by the pair before it."""
    n, rounds = (options.pairs, options.rounds) if ratio == 1 else (options.other_pairs, options.other_rounds)
    found = measure_pairs(
        lambda delay: hosts.run(delay, link.rate_mbit(ratio), rounds),
        LOCAL_STEPS,
        n,
        after=lambda pair: link.learn(pair["blocking"]),
    )
    said = {name: round(value, 3) for name, value in found["medians"].items()}
    rates = [pair["blocking"]["rate_mbit"] for pair in found["pairs"]]
    print(f"  M/C {ratio:g} at {rates} Mbit/s:", said, flush=True)
    return {"rate_mbit": median(rates)} | found


if __name__ == "__main__":
    main()
