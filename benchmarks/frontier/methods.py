"""What bench_frontier compares: the methods, the size of their runs, and the order in which runs are made."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

N_CLIENTS = 2
BATCH_SIZE = 1
LORA_RANK = 16
CODEC = "int4"
"""Of the block methods: on the whole model it changes the final loss by 0.01 % and sends half of int8's bytes."""
TRIAL_SEED = 9
"""Seed for learning rate trials, which no reported run uses."""
WHOLE_RATES = (1e-4, 5e-5, 2e-4)
ADAPTER_RATES = (1e-3, 5e-4, 2e-3)


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        title: Name shown in the table.
        learning_rates: AdamW's learning rates to try, as many for every method; the middle one comes first.
        strategy: Options of ParaBlockStrategy.
        lora_rank: Rank of adapters; 0 trains the model itself.
        long_rounds: Whether its rounds are as long as those of whole-model methods.
        rate_of: The method whose learning rate it uses instead of a search of its own.
    """

    title: str
    learning_rates: tuple[float, ...] = ()
    strategy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    lora_rank: int = 0
    long_rounds: bool = False
    rate_of: str | None = None


def _blocks(n: int) -> Method:
    title = f"ParaBlock, {n} block{'s' * (n > 1)}, {CODEC}"
    return Method(title, WHOLE_RATES, {"blocks": n, "compression": CODEC}, long_rounds=n == 1)


BLOCKING = {"blocks": 1, "delay_steps": 0}
MAIN = {
    "blocks_5": _blocks(5),
    "lora": Method("LoRA, FedAvg of adapters", ADAPTER_RATES, BLOCKING, LORA_RANK),
    "lora_parablock": Method("ParaBlock over LoRA", ADAPTER_RATES, {"blocks": 1}, LORA_RANK),
    "blocks_1": _blocks(1),
    "fedavg": Method("FedAvg", WHOLE_RATES, BLOCKING, long_rounds=True),
    "blocks_2": _blocks(2),
    "blocks_8": _blocks(8),
}
"""All that the question names, the most telling first."""
COMPRESSED = {**BLOCKING, "compression": CODEC}
EXTRAS = {
    "lora_codec": Method(f"LoRA, FedAvg of adapters, {CODEC}", (), COMPRESSED, LORA_RANK, rate_of="lora"),
    "fedavg_codec": Method(f"FedAvg, {CODEC}", (), COMPRESSED, long_rounds=True, rate_of="fedavg"),
}
"""The baselines with the block methods' codec, on the first seed."""
METHODS = {**MAIN, **EXTRAS}


@dataclass(frozen=True)
class Size:
    """The size of the runs.

    Attributes:
        layers: First layers of the model that are kept; None keeps all.
        local_steps: Local steps per round of block methods and LoRA.
        long_steps: The same of methods that send the whole model: they send more bytes per round.
        steps: Optimizer steps per client; no example is used twice in a run.
        trial_steps: Optimizer steps per client in a learning rate trial.
        evaluate_every_steps: Steps between two held-out losses on GSM8K; a multiple of the steps of every round.
        val_examples: Held-out examples of GSM8K. The instruction set has more, and is evaluated less often in the same
            proportion (benchmarks.harness.sets.VAL_SHARE).
        seeds: Seeds for data, block order and adapters.
        rates: How many learning rates are tried.
        sequence_length: Tokens per example.
        fresh: Whether each reported run has fresh processes, so that peaks of memory mean something.
    """

    layers: int | None
    local_steps: int
    long_steps: int
    steps: int
    trial_steps: int
    evaluate_every_steps: int
    val_examples: int
    seeds: tuple[int, ...]
    rates: int
    sequence_length: int = 128
    fresh: bool = True


SIZES = {
    "whole": Size(
        None, 8, 16, 400, trial_steps=80, evaluate_every_steps=16, val_examples=32, seeds=(0, 1), rates=3
    ),
    "quick": Size(
        8, 1, 2, 4, trial_steps=2, evaluate_every_steps=2, val_examples=2, seeds=(0,), rates=1, sequence_length=32,
        fresh=False,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class Run:
    """One run; ``trial_rate`` is the learning rate of a trial, None for a reported run."""

    data: str
    method: str
    seed: int
    trial_rate: float | None = None

    def __str__(self) -> str:
        rate = "" if self.trial_rate is None else f", learning rate {self.trial_rate:g}"
        return f"{self.method} on {self.data}, seed {self.seed}{rate}"


def round_steps(method: Method, size: Size) -> int:
    """Local steps per round."""
    return size.long_steps if method.long_rounds else size.local_steps


def delay_steps(method: Method, size: Size) -> int:
    """Steps from the end of a round to the merge of its exchange."""
    return method.strategy.get("delay_steps", round_steps(method, size))


def main_runs(size: Size) -> list[Run]:
    """On GSM8K: each method's trials and its first seed, then the other seeds."""
    first, *later = size.seeds
    runs = list[Run]()
    for name, method in MAIN.items():
        runs += [Run("gsm8k", name, TRIAL_SEED, rate) for rate in method.learning_rates[: size.rates]]
        runs.append(Run("gsm8k", name, first))
    return runs + [Run("gsm8k", name, seed) for seed in later for name in MAIN]


def queue(size: Size, two_best: Callable[[], Sequence[str]]) -> Iterator[Run]:
    """Every run, the most informative first; the instruction set's are known once the others are made.

    Args:
        size: The size of the runs.
        two_best: Called when the runs on GSM8K are over: the methods for the instruction set.
    """
    yield from main_runs(size)
    best = two_best()
    yield from (Run("instruct", name, seed) for seed in size.seeds for name in best)
    yield from (Run("gsm8k", name, size.seeds[0]) for name in EXTRAS)
