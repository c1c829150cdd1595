"""Does hiding the exchange cost quality? ParaBlock, FedBCD and FedAvg on GSM8K at equal samples.

Two clients with iid halves of the training questions fine-tune SmolLM2-135M-Instruct from its package: the whole model
(one seed), and the model cut to its first layers (three seeds). Every run is a real Lightning fit over gloo; the
network does not change the trajectory, so links are unshaped. Finished runs are kept; a second start continues after
them.

With --delays the runs differ in the delay with which they begin instead: none in the first 1, 2, 4 or 8 rounds, a
quarter or half of K, K as always, or none at all. Seeds and samples are the same, the held-out loss is measured after
every round, and what results/quality.json has of the other runs stays in it.

    python -m benchmarks.bench_quality --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
    python -m benchmarks.bench_quality --delays --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import gsm8k
from benchmarks.harness.publish import folder, parser, publish
from benchmarks.harness.results import read_result
from benchmarks.quality import delays

QUESTION = "quality"
METHODS: dict[str, dict[str, Any]] = {
    "parablock": {},
    "fedbcd": {"delay_steps": 0},
    "fedavg": {"blocks": 1, "delay_steps": 0},
}
SIZES = ("cut", "whole", "quick")


def main() -> None:
    """Parse the options, make the missing runs, and write the result."""
    made = parser(__doc__)
    gsm8k.add_options(made)
    made.add_argument("--sizes", default="cut,whole", help=f"comma-separated list of {', '.join(SIZES)}")
    made.add_argument("--delays", action="store_true", help="compare the delays with which a run begins")
    options = made.parse_args()
    if options.quick:
        options.sizes = "quick"
    sizes, kept = options.sizes.split(","), folder(options) / "quality_runs"
    if options.delays:
        sizes = [delays.SIZES[size] for size in sizes]
    runs = _others(folder(options) / f"{QUESTION}.json", sizes)
    for size in sizes:
        runs += gsm8k.runs_of(_methods(size), size, options, kept)
    publish(
        QUESTION,
        options,
        configuration=gsm8k.configuration(sorted({run["size"] for run in runs})),
        seeds=sorted({run["seed"] for run in runs}),
        network={"links": "not shaped: the network changes no weight"},
        values={"runs": runs, "over_blocking": delays.over_blocking(runs)},
    )


def _methods(size: str) -> dict[str, dict[str, Any]]:
    return delays.methods(gsm8k.SIZES[size].local_steps) if size in delays.SIZES.values() else METHODS


def _others(path: Path, sizes: Sequence[str]) -> list[dict[str, Any]]:
    """The runs of other sizes that the result file has."""
    if not path.exists():
        return []
    return [run for run in read_result(path)["values"]["runs"] if run["size"] not in sizes]


if __name__ == "__main__":
    main()
