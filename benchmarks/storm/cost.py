"""What elastic mode costs when nothing happens: the same fit with a fixed and an elastic membership, in alternation.

Both run in the same workers, on the same links. Bytes are those of a host's link, headers included, so that the control
traffic of elastic mode counts, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from itertools import pairwise
from statistics import median
from typing import Any

import lightning.pytorch as pl
import torch

from benchmarks.harness.fits import StepClock
from benchmarks.harness.trainers import bare_trainer
from benchmarks.harness.workers import Workers
from benchmarks.harness.workloads import SleepingModel, loader
from benchmarks.hosts import address
from benchmarks.hosts.network import INTERFACE, interface_bytes
from lightning_parablock import ParaBlockStrategy

PORT = 29610
MODES = ("fixed", "elastic")
LAUNCHER = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "NODE_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "TORCHELASTIC_RUN_ID")
SKIPPED = 2
"""Rounds at the beginning in which nothing is in flight yet."""
Run = list[dict[str, Any]]
"""Per site: ``steps`` ([start, end] of each) and ``link_bytes`` (sent before each round, and after the drain)."""


def measure(workers: Workers, plan: Mapping[str, Any], pairs: int, rate_mbit: float) -> dict[str, Any]:
    """``pairs`` pairs of runs and the medians of their ratios; which of a pair comes first alternates."""
    made: list[dict[str, Run]] = []
    for index in range(pairs):
        order = MODES if index % 2 == 0 else MODES[::-1]
        told = [{**plan, "mode": mode, "port": PORT + index} for mode in order]
        runs: dict[str, Run] = {
            str(one["mode"]): workers.run("benchmarks.storm.cost:fit", one, rate_mbit=rate_mbit) for one in told
        }
        made.append(runs)
        print(f"cost, pair {index}: {ratios([runs], plan['local_steps'])}", flush=True)
    return {"ratios": ratios(made, plan["local_steps"]), "pairs": made}


def ratios(pairs: Sequence[Mapping[str, Run]], local_steps: int) -> dict[str, float]:
    """Elastic over fixed, medians over the pairs: time of a step, of a round, and sent bytes per round and site."""
    parts = [{mode: parts_of(pair[mode], local_steps) for mode in MODES} for pair in pairs]
    return {name: median(one["elastic"][name] / one["fixed"][name] for one in parts) for name in parts[0]["fixed"]}


def parts_of(run: Run, local_steps: int) -> dict[str, float]:
    """Median seconds of a step and of a round without the first rounds, and bytes per round and site with the drain."""
    skipped = SKIPPED * local_steps
    steps = [end - start for site in run for start, end in site["steps"][skipped:]]
    rounds = [
        after - before
        for site in run
        for before, after in pairwise([start for start, _ in site["steps"][skipped::local_steps]])
    ]
    # All of them: what is on its way at a round's end differs from run to run, and is nothing after the drain.
    sent = [(site["link_bytes"][-1] - site["link_bytes"][0]) / (len(site["link_bytes"]) - 1) for site in run]
    return {"step_s": median(steps), "round_s": median(rounds), "sent_bytes": sum(sent) / len(sent)}


class LinkCount(pl.Callback):
    """Reads the bytes that this host has sent before each round and after the drain.

    Args:
        local_steps: Local steps per round.

    Attributes:
        counts: One number per round, and one more.
    """

    def __init__(self, local_steps: int) -> None:
        self.counts: list[int] = []
        self._local_steps = local_steps

    def on_train_batch_start(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Called by Lightning."""
        if trainer.global_step % self._local_steps == 0:
            self.counts.append(interface_bytes(INTERFACE)[1])

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Called by Lightning, after the strategy's own callback, which has drained."""
        self.counts.append(interface_bytes(INTERFACE)[1])


def fit(plan: Mapping[str, Any]) -> dict[str, Any]:
    """The job of one site: one fit, fixed or elastic.

    Args:
        plan: ``mode``, ``port`` of the lighthouse, ``model`` (of sleeps), ``rounds``, ``local_steps``, ``silence_s``.
    """
    torch.set_num_threads(1)
    rank, sites, steps = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"]), plan["rounds"] * plan["local_steps"]
    blocks = [rf"\.{index}$" for index in range(plan["model"]["n_blocks"])]
    common: dict[str, Any] = {"local_steps": plan["local_steps"], "blocks": blocks, "topology": "sharded"}
    clock, link = StepClock(), LinkCount(plan["local_steps"])
    model = SleepingModel(plan["model"]["step_s"], plan["model"]["n_blocks"], plan["model"]["block_scalars"])
    mode = _elastic(plan, rank, sites) if plan["mode"] == "elastic" else _fixed()
    with tempfile.TemporaryDirectory() as folder, mode as options:
        trainer = bare_trainer(
            ParaBlockStrategy(**common, **options),
            steps,
            [clock, link],
            num_nodes=1 if options else sites,
            default_root_dir=folder,
        )
        trainer.fit(model, loader(plan["model"], steps, rank))
    return {"steps": clock.spans, "link_bytes": link.counts}


@contextmanager
def _fixed() -> Generator[dict[str, Any]]:
    yield {}


@contextmanager
def _elastic(plan: Mapping[str, Any], rank: int, sites: int) -> Generator[dict[str, Any]]:
    """The options of an elastic site, whose lighthouse the first host runs, as if no launcher had started it."""
    hidden = {name: os.environ.pop(name) for name in LAUNCHER if name in os.environ}
    words = [sys.executable, "-m", "lightning_parablock", "lighthouse", "--port", str(plan["port"])]
    words += ["--silence_s", f"{plan['silence_s']:g}"]
    lighthouse = subprocess.Popen(words) if rank == 0 else None
    try:
        yield {
            "lighthouse": f"{address(0)}:{plan['port']}",
            "site": f"site{rank}",
            "min_clients": sites,
            "silence_s": plan["silence_s"],
        }
    finally:
        os.environ.update(hidden)
        if lighthouse is not None:
            time.sleep(2 * plan["silence_s"])  # the others end, too
            lighthouse.terminate()
            lighthouse.wait(30.0)
