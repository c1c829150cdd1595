"""One run of one method, as it is handed to the process of each client, and what every such process needs."""

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
    """What one run is.

    Attributes:
        method: Key of METHODS.
        size: Key of SIZES.
        learning_rate: Of AdamW.
        seed: Of data, order of blocks and adapters.
        steps: Optimizer steps a client.
        local_steps: Of a round.
        timed: Time the steps and evaluate nothing, or evaluate and time nothing.
        train: GSM8K's training questions: hub id or JSON Lines file.
        test: Its test questions.
        folder: Where the clients leave their results, one folder a run.
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
        """The method's row."""
        return METHODS[self.method]

    @property
    def of_size(self) -> Size:
        """The size's row."""
        return SIZES[self.size]

    @property
    def evaluate_every_steps(self) -> int:
        """Steps between two held-out losses: at rounds' ends only."""
        return max(self.local_steps, self.of_size.evaluate_every_steps)


def rank() -> int:
    """This process's client."""
    return int(os.environ["RANK"])


def sent_bytes() -> int:
    """Bytes this host has put on its link since it was made, headers included, as its interface counts them."""
    _, sent = interface_bytes(INTERFACE)
    return sent


def meet(job: Job, where: str) -> None:
    """Wait until every client is here, without a byte on the link. Raises TimeoutError."""
    folder = Path(job.folder)
    (folder / f"{where}-{rank()}").touch()
    deadline = time.monotonic() + MEET_S
    while len(list(folder.glob(f"{where}-*"))) < N_CLIENTS:
        if time.monotonic() > deadline:
            raise TimeoutError(f"client {rank()} was alone at the {where} for {MEET_S} s")
        time.sleep(POLL_S)


def leave(job: Job, result: dict[str, Any]) -> None:
    """Leave this client's result, in one step, for the launcher."""
    write_whole(Path(job.folder) / f"result-{rank()}.json", json.dumps(result))
