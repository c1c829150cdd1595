"""One run of one method, as passed to the process of each client, and what every such process needs."""

from __future__ import annotations

import json
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.harness.files import write_whole
from benchmarks.hosts.network import INTERFACE, interface_bytes
from benchmarks.peers.methods import METHODS, N_CLIENTS, SIZES, Method, Size

POLL_S = 0.02
MEET_S = 300.0


@dataclass(frozen=True)
class Job:
    """Description of one run.

    Attributes:
        method: Key of METHODS.
        size: Key of SIZES.
        learning_rate: AdamW's learning rate.
        seed: Seed for data, block order and adapters.
        steps: Optimizer steps per client.
        local_steps: Local steps per round.
        timed: Whether steps are timed without any evaluation, or the model is evaluated without timing.
        train: GSM8K's training questions: hub id or JSON Lines file.
        test: GSM8K's test questions, likewise.
        folder: Folder for the clients' results, one per run.
    """

    method: str
    size: str
    learning_rate: float
    seed: int
    steps: int
    local_steps: int
    timed: bool
    train: str
    test: str
    folder: str

    @property
    def of_method(self) -> Method:
        """The entry of METHODS."""
        return METHODS[self.method]

    @property
    def of_size(self) -> Size:
        """The entry of SIZES."""
        return SIZES[self.size]

    @property
    def evaluate_every_steps(self) -> int:
        """Steps between two held-out losses, which are taken only at the end of a round."""
        return max(self.local_steps, self.of_size.evaluate_every_steps)


def rank() -> int:
    """The client of this process."""
    return int(os.environ["RANK"])


def sent_bytes() -> int:
    """Bytes this host has put on its link since it was created, headers included, as counted by its interface."""
    _, sent = interface_bytes(INTERFACE)
    return sent


def meet(job: Job, where: str) -> None:
    """Wait until every client has arrived, without using the link. Raises TimeoutError."""
    folder = Path(job.folder)
    (folder / f"{where}-{rank()}").touch()
    deadline = time.monotonic() + MEET_S
    while len(list(folder.glob(f"{where}-*"))) < N_CLIENTS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"client {rank()} was alone at the {where} for {MEET_S} s")
        time.sleep(POLL_S)


def leave(job: Job, result: dict[str, Any]) -> None:
    """Write this client's result atomically for the launcher."""
    write_whole(Path(job.folder) / f"result-{rank()}.json", json.dumps(result))
