"""Fine-tuning on GSM8K with two clients, and the resulting held-out losses, run by run.

The clients hold iid halves of the training questions and train SmolLM2-135M-Instruct from its package, whole or cut to
its first layers. The network does not change the trajectory, so links are unshaped. Finished runs are kept in files; a
second start continues after them.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.harness.results import git_state
from benchmarks.harness.workers import Workers, attempt

HUB_ID = "openai/gsm8k"
COLUMNS = {"prompt_field": "question", "answer_field": "answer", "template": "Question: {question}\nAnswer: "}
"""Options of FederatedTextDataModule: how a row is turned into an example."""
BATCH_SIZE = 2
N_CLIENTS = 2
LIMIT_S = 4 * 3600.0


@dataclass(frozen=True)
class Size:
    """The size of the runs of one row."""

    layers: int | None
    blocks: int
    sequence_length: int
    steps: int
    local_steps: int
    learning_rate: float
    evaluate_every_steps: int
    val_examples: int
    seeds: tuple[int, ...]


SIZES = {
    "cut": Size(
        3, 4, 128, 64, local_steps=4, learning_rate=3e-4, evaluate_every_steps=16, val_examples=32, seeds=(0, 1, 2)
    ),
    "whole": Size(
        None, 8, 256, 128, local_steps=8, learning_rate=1e-4, evaluate_every_steps=32, val_examples=24, seeds=(0,)
    ),
    "shallow": Size(
        1, 2, 64, 40, local_steps=2, learning_rate=3e-4, evaluate_every_steps=8, val_examples=16, seeds=(0,)
    ),
    "quick": Size(1, 2, 64, 8, local_steps=2, learning_rate=3e-4, evaluate_every_steps=4, val_examples=2, seeds=(0,)),
}


SIZES.update({f"{name}-by-round": replace(size, evaluate_every_steps=size.local_steps) for name, size in SIZES.items()})


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add options for the questions' location: by default the files named by GSM8K_TRAIN and GSM8K_TEST, or the hub."""
    for name, variable in (("train", "GSM8K_TRAIN"), ("test", "GSM8K_TEST")):
        where = os.environ.get(variable, HUB_ID)
        parser.add_argument(f"--{name}-file", default=where, help=f"GSM8K {name} questions: hub id or JSON Lines file")


def config_name(source: str) -> str | None:
    """The configuration to load: the hub's data set has two, a file has none."""
    return "main" if source == HUB_ID else None


def data_options(train: str, test: str) -> dict[str, Any]:
    """Options of FederatedTextDataModule: where the questions are, and :data:`COLUMNS`."""
    return {"source": train, "config_name": config_name(train), "val_source": test, **COLUMNS}


def runs_of(
    methods: Mapping[str, Mapping[str, Any]], size_name: str, options: argparse.Namespace, folder: Path
) -> list[dict[str, Any]]:
    """One run per seed and method.

    Each is the result of :func:`benchmarks.harness.gsm8k_job.train` with ``size``, ``method``, ``seed`` and ``failed``.

    Args:
        methods: Name -> options of ParaBlockStrategy.
        size_name: Key of SIZES.
        options: Parsed options of :func:`add_options`.
        folder: Folder of the finished runs, which are not repeated unless they are quick ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    runs: list[dict[str, Any]] = []
    with Workers(N_CLIENTS, linked=False) as workers:
        for seed in SIZES[size_name].seeds:
            for name, strategy in methods.items():
                facts = {"size": size_name, "method": name, "seed": seed}
                plan = facts | {"strategy": dict(strategy), "train": options.train_file, "test": options.test_file}
                path = folder / f"{size_name}-{name}-{seed}.json"
                is_kept = path.exists() and size_name != "quick"
                runs.append(facts | (json.loads(path.read_text()) if is_kept else _run(workers, plan, path)))
    return runs


def _run(workers: Workers, plan: dict[str, Any], path: Path) -> dict[str, Any]:
    made = attempt(workers.first_answer, "benchmarks.harness.gsm8k_job:train", plan, limit_s=LIMIT_S)
    if not made["failed"]:
        made["commit"] = git_state()["sha"]
        path.write_text(json.dumps(made, indent=1))
        losses = [round(loss, 4) for _, loss in made["held_out_loss"]]
        print(f"{path.stem}: {losses} in {made['seconds']:.0f} s", flush=True)
    return made


def configuration(size_names: Sequence[str]) -> dict[str, Any]:
    """The part of a result file's configuration that describes the runs."""
    return {"batch_size": BATCH_SIZE, "clients": N_CLIENTS} | {name: asdict(SIZES[name]) for name in size_names}
