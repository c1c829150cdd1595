"""What bench_claims compares: the methods, the size of their runs, and the order in which runs are made.

ParaBlock uses FedBCD's learning rate, and so does every row that differs from them in one setting: each is compared
with the FedBCD of the same order and K.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from lightning_parablock import ParaBlockStrategy
from lightning_parablock.models import CausalLM

N_CLIENTS = 4
BATCH_SIZE = 2
Cell = tuple[str, str]
CELLS: tuple[Cell, ...] = (("gsm8k", "iid"), ("gsm8k", "dirichlet"), ("instruct", "iid"), ("instruct", "dirichlet"))
"""(data set, partition), the most telling first."""
ALPHA = 0.1
"""Concentration of the Dirichlet partition."""
TRIAL_SEED = 9
"""Seed for learning rate trials, which no reported run uses."""


@dataclass(frozen=True)
class Method:
    """One row of the table.

    Attributes:
        title: Name shown in the table.
        learning_rates: AdamW's learning rates to try; empty if another method's choice is used.
        baseline: The method it is compared with, whose learning rate it uses if it has none of its own.
        strategy: Options of ParaBlockStrategy, which override those of the size.
        model: Options of CausalLM.
        turns: Steps of the run per step of a client; the number of clients if they take turns.
        rate_factor: Factor applied to the learning rate.
    """

    title: str
    learning_rates: tuple[float, ...] = ()
    baseline: str = "fedbcd"
    strategy: Mapping[str, Any] = field(default_factory=dict[str, Any])
    model: Mapping[str, Any] = field(default_factory=dict[str, Any])
    turns: int = 1
    rate_factor: float = 1.0

    def missing(self) -> list[str]:
        """Options that this version of the package does not have."""
        pairs = ((ParaBlockStrategy, self.strategy), (CausalLM, self.model))
        return [name for owner, given in pairs for name in given if name not in inspect.signature(owner).parameters]


BLOCKING = {"delay_steps": 0}
RELAY = {"cohort": 1, "cohort_sampling": "rotation", "block_order": "sequential", "delay_steps": 0}
LEADING = {
    "fedbcd": Method("FedBCD", (1e-3, 3e-3, 1e-2), strategy=BLOCKING),
    "parablock": Method("ParaBlock"),
}
OTHERS = {
    "fedavg": Method("FedAvg", (1e-3, 3e-3, 1e-2), strategy={"blocks": 1, **BLOCKING}),
    "lora": Method(
        "LoRA, FedAvg of adapters",
        (1e-3, 3e-3, 1e-2, 3e-2),
        strategy={"blocks": 1, **BLOCKING},
        model={"lora_rank": 16},
    ),
    "fedcybgd": Method("FedCyBGD", (1e-3, 3e-3, 1e-2), strategy=RELAY, turns=N_CLIENTS),
}


def _pair(name: str, title: str, rate_factor: float = 1.0, **options: Any) -> dict[str, Method]:
    """FedBCD and ParaBlock with the same additional options."""
    blocking = {**BLOCKING, **options}
    of_pair = f"fedbcd_{name}"
    return {
        of_pair: Method(f"FedBCD, {title}", strategy=blocking, rate_factor=rate_factor),
        f"parablock_{name}": Method(f"ParaBlock, {title}", baseline=of_pair, strategy=options, rate_factor=rate_factor),
    }


EXTRAS = {
    "parablock_anchor": Method("ParaBlock, anchor", strategy={"in_flight_value": "anchor"}),
    "parablock_half": Method("ParaBlock, delay K/2", strategy={"delay_steps": 2}),
    **_pair("k2", "K = 2", local_steps=2),
    **_pair("keep", "optimizer state kept", block_optimizer_state="keep"),
    **_pair("slow", "a third of the learning rate", rate_factor=1 / 3),
    "parablock_2k": Method("ParaBlock, delay 2K", strategy={"delay_steps": 8}),
    **_pair("k8", "K = 8", local_steps=8),
    **_pair("sequential", "sequential", block_order="sequential"),
    **_pair("random", "random order", block_order="random"),
    **_pair("k16", "K = 16", local_steps=16),
}
METHODS = {**LEADING, **OTHERS, **EXTRAS}


@dataclass(frozen=True)
class Size:
    """The size of the runs.

    Attributes:
        layers: First layers of the model that are kept; None keeps all.
        blocks: The ``blocks`` option of ParaBlockStrategy.
        local_steps: Local steps per round (K).
        steps: Optimizer steps per client; no example is used twice in a run.
        trial_steps: Optimizer steps per client in a learning rate trial.
        evaluate_every_steps: Steps between two held-out losses.
        val_examples: Held-out examples of GSM8K, evenly spaced over the test rows (see also claims.data.VAL_SHARE).
        seeds: Seeds for data, block order and adapters. Only those that give each client as many examples as its steps
            need: with Dirichlet(0.1), seed 2 leaves one client 48 of GSM8K's 7,473 rows.
        learning_rate: Learning rate of all methods; None uses the best of each method's trials.
        sequence_length: Tokens per example.
    """

    layers: int | None
    blocks: str | int
    local_steps: int
    steps: int
    trial_steps: int
    evaluate_every_steps: int
    val_examples: int
    seeds: tuple[int, ...]
    learning_rate: float | None = None
    sequence_length: int = 128


CUT = Size(3, "layers", 4, 80, 40, evaluate_every_steps=20, val_examples=64, seeds=(0, 1, 3))
SIZES = {
    "cut": CUT,
    # Five blocks: the embedding is as large as each fifth of the rest.
    "whole": Size(None, 5, 4, 80, 0, evaluate_every_steps=20, val_examples=32, seeds=(0, 1, 3), learning_rate=2e-4),
    **{
        f"cut_{steps}": replace(CUT, steps=steps, evaluate_every_steps=steps // 4, seeds=(0,), learning_rate=3e-3)
        for steps in (40, 160, 320)
    },
    "quick": Size(1, 2, 2, 8, 4, 4, val_examples=8, seeds=(0,), sequence_length=32),
}


@dataclass(frozen=True)
class Run:
    """One run; ``trial_rate`` is the learning rate of a trial, None for a reported run."""

    size: str
    data: str
    partition: str
    method: str
    seed: int
    trial_rate: float | None = None

    def __str__(self) -> str:
        rate = "" if self.trial_rate is None else f", learning rate {self.trial_rate:g}"
        return f"{self.method} on {self.data}, {self.partition}, {self.size}, seed {self.seed}{rate}"


def queue(size_name: str) -> list[Run]:
    """All runs of one size, the most telling first; a method's trials precede its first run.

    The whole model and other numbers of steps get one pair of runs per seed; quick runs cover two cells and no extras.
    """
    if size_name not in ("cut", "quick"):
        return list(_runs(size_name, LEADING, CELLS[:1], SIZES[size_name].seeds))
    cells, extras = ((CELLS[0], CELLS[-1]), []) if size_name == "quick" else (CELLS, EXTRAS)
    first, *later = SIZES[size_name].seeds
    return [
        *_trials(size_name, LEADING, cells[0]),
        *_runs(size_name, LEADING, cells, [first]),
        *_runs(size_name, extras, cells[:1], [first]),
        *_runs(size_name, LEADING, cells, later),
        *_trials(size_name, OTHERS, cells[0]),
        *_runs(size_name, OTHERS, cells, [first, *later]),
        *_runs(size_name, extras, cells[:1], later),
    ]


def _trials(size_name: str, methods: Mapping[str, Method], cell: Cell) -> Iterator[Run]:
    for name, method in methods.items():
        for rate in method.learning_rates:
            yield Run(size_name, *cell, name, TRIAL_SEED, rate)


def _runs(size_name: str, methods: Iterable[str], cells: Iterable[Cell], seeds: Iterable[int]) -> Iterator[Run]:
    for seed, cell, name in itertools.product(seeds, cells, methods):
        yield Run(size_name, *cell, name, seed)
