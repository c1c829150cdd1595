"""What a site of a storm trains, and the lines that it leaves: sleeps in place of computation, blocks of real size."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

HEAD = 16
STEPS_AHEAD = 65536
"""Steps that a site has data for: hours."""


@dataclass(frozen=True)
class Job:
    """What the process of one site is given.

    Attributes:
        site: Index of the site.
        sites: Number of sites.
        min_sites: Fewer do not continue.
        lighthouse: ``host:port``.
        folder: Where the processes of all sites leave their traces and look for the last round.
        process: Number of this process among those of its site.
        silence_s: Seconds without a sign of life after which a site is lost.
        local_steps: Local steps per round.
        step_s: Duration of a local step, which is a sleep.
        n_blocks: Number of blocks, or fragments.
        block_scalars: Scalars per block.
    """

    site: int
    sites: int
    min_sites: int
    lighthouse: str
    folder: str
    process: int = 0
    silence_s: float = 2.0
    local_steps: int = 8
    step_s: float = 0.25
    n_blocks: int = 4
    block_scalars: int = 2_000_000

    @property
    def name(self) -> str:
        """Name of the site."""
        return f"site{self.site}"

    def to_json(self) -> str:
        """As a command line's argument."""
        return json.dumps(asdict(self))


class Part(nn.Module):
    """One block: a large parameter that gets no gradient and is exchanged all the same, and a small one that learns.

    Args:
        scalars: Number of scalars.
    """

    def __init__(self, scalars: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(scalars - HEAD))
        self.head = nn.Parameter(torch.zeros(HEAD))


def parts(job: Job) -> nn.ModuleList:
    """The blocks, the same at every site."""
    return nn.ModuleList(Part(job.block_scalars) for _ in range(job.n_blocks))


def loss_of(blocks: Iterable[Any], batch: Tensor, step_s: float) -> Tensor:
    """Sleep for a step; the heads then learn to be small in the directions of the batch, shape (1, HEAD)."""
    time.sleep(step_s)
    return torch.stack([(batch[0] * (block.head - 1)).sum() ** 2 for block in blocks]).sum()


def data_of(job: Job) -> Tensor:
    """The site's own data, one row per step."""
    return torch.randn(STEPS_AHEAD, HEAD, generator=torch.Generator().manual_seed(job.site))


def digest(values: Iterable[Tensor]) -> str:
    """A short hash of tensors on the host."""
    sha = hashlib.sha256()
    for value in values:
        array: Any = value.detach().contiguous().numpy()
        sha.update(array)
    return sha.hexdigest()[:16]


class Trace:
    """Lines of JSON, each with the time; what was written outlives the process.

    Args:
        job: Names the file.
    """

    def __init__(self, job: Job) -> None:
        self._path = Path(job.folder) / f"trace-{job.site}-{job.process}.jsonl"
        self._file = self._path.open("a", buffering=1)

    def note(self, what: str, **facts: Any) -> None:
        """Append one line."""
        self._file.write(json.dumps({"at_s": round(time.time(), 4), "what": what, **facts}) + "\n")


def last_round(job: Job) -> int | None:
    """The round after which all sites end, once the launcher has said it."""
    try:
        return int((Path(job.folder) / "last").read_text())
    except FileNotFoundError:
        return None
