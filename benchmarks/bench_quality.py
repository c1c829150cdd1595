"""Does hiding the exchange cost quality? ParaBlock, FedBCD and FedAvg on GSM8K at equal samples.

Two clients with iid halves of the training questions fine-tune SmolLM2-135M-Instruct from its package: the whole model
(one seed), and the model cut to its first layers (three seeds). Every run is a real Lightning fit over gloo; the
network does not change the trajectory, so links are unshaped. Finished runs are kept; a second start continues after
them.

    python -m benchmarks.bench_quality --train-file gsm8k_train.jsonl --test-file gsm8k_test.jsonl
"""

from __future__ import annotations

from typing import Any

from benchmarks.harness import gsm8k
from benchmarks.harness.publish import folder, parser, publish

QUESTION = "quality"
METHODS: dict[str, dict[str, Any]] = {
    "parablock": {},
    "fedbcd": {"delay_steps": 0},
    "fedavg": {"blocks": 1, "delay_steps": 0},
}


def main() -> None:
    """Parse the options, make the missing runs, and write the result."""
    made = parser(__doc__)
    gsm8k.add_options(made)
    made.add_argument("--sizes", default="cut,whole", help=f"comma-separated list of {', '.join(gsm8k.SIZES)}")
    options = made.parse_args()
    if options.quick:
        options.sizes = "quick"
    sizes, kept = options.sizes.split(","), folder(options) / "quality_runs"
    runs = [run for size in sizes for run in gsm8k.runs_of(METHODS, size, options, kept)]
    publish(
        QUESTION,
        options,
        configuration=gsm8k.configuration(sizes),
        seeds=sorted({run["seed"] for run in runs}),
        network={"links": "not shaped: the network changes no weight"},
        values={"runs": runs},
    )


if __name__ == "__main__":
    main()
