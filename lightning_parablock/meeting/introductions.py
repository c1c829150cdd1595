"""Identities of the ranks of a run: their names, and the numbers derived from them.

Where sites have names, rank r of the run is the r-th of the sorted names, whatever rank its launcher assigned: a site
keeps its number, its share of the data and its part of a checkpoint from run to run.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lightning_parablock.errors import ConfigurationError
from lightning_parablock.system.bounded_json import parsed
from lightning_parablock.system.reading import reading

NO_NUMBER = -1


@dataclass(frozen=True)
class Introduction:
    """A rank's description of itself before the run.

    Attributes:
        rank: Number assigned by the launcher; -1 without a launcher, when the meeting assigns one.
        n_ranks: Number of ranks it expects, itself included.
        site: Name of its site, or None.
        host: Name of its machine.
        pid: Process id.
        job: The launcher's name for the job; empty without a launcher or a name.
        system: Identifier of the running system and process namespace of the pid; see :func:`this_system`.
    """

    rank: int
    n_ranks: int
    site: str | None
    host: str
    pid: int
    job: str = ""
    system: str = ""

    @classmethod
    def from_json(cls, text: bytes, what: str) -> Introduction:
        """The introduction that a rank wrote as JSON.

        Args:
            text: The JSON.
            what: Names it in messages.

        Raises:
            ProtocolError: it is something else, as of another version of this package.
        """
        with reading(what):
            one = cls(**parsed(text))
            numbers, texts = (one.rank, one.n_ranks, one.pid), (one.host, one.job, one.system, one.site or "")
            if any(type(number) is not int for number in numbers) or any(type(text) is not str for text in texts):
                raise TypeError(f"a value has another type: {one!r}")
        return one

    @property
    def seat(self) -> str:
        """Identifier of the process, unique among all processes alive at the same time."""
        return f"{self.process} ({self.system})" if self.system else self.process

    @property
    def process(self) -> str:
        """The process, for messages."""
        return f"pid {self.pid} on {self.host}"

    @property
    def run(self) -> str:
        """The rank's run, for messages: the same for all ranks of the run."""
        return f"a run of {self.n_ranks} processes" + (f" (job {self.job})" if self.job else "")

    def describe(self) -> str:
        """Name for messages: ``site a (pid 12 on h)`` or ``rank 0 (pid 12 on h)``."""
        return f"{f'rank {self.rank}' if self.site is None else f'site {self.site}'} ({self.process})"


@dataclass(frozen=True)
class Meeting:
    """The ranks that have met.

    Attributes:
        ranks: Introductions of the ranks, in the order of their numbers in the run.
        rank: Number of this process in the run.
        run_id: Unique identifier of the run, the same on every rank.
    """

    ranks: tuple[Introduction, ...]
    rank: int
    run_id: str

    @property
    def site_names(self) -> tuple[str, ...]:
        """Name of each rank's site; empty if sites have no names."""
        return tuple(one.site for one in self.ranks if one.site is not None)


def in_order(ranks: Sequence[Introduction]) -> tuple[Introduction, ...]:
    """The ranks in the order of their numbers in the run: by the names of the sites, else by the launcher's numbers.

    Raises:
        ConfigurationError: only some of the ranks name their site, or two have the same name.
    """
    ranks = sorted(ranks, key=lambda one: one.rank)
    unnamed = [one for one in ranks if one.site is None]
    if len(unnamed) == len(ranks):
        return tuple(ranks)
    if unnamed:
        named = next(one for one in ranks if one.site is not None)
        raise ConfigurationError(
            f"some sites have names and others do not: {named.describe()} has one, {several(unnamed)} has none; give "
            "every process its own --site NAME, or none"
        )
    by_name = tuple(sorted(ranks, key=lambda one: str(one.site)))
    for one, other in itertools.pairwise(by_name):
        if one.site == other.site:
            raise ConfigurationError(
                f"two processes have the site name {one.site!r}: {one.process} and {other.process}; a site is one "
                "process: give each a name of its own"
            )
    return by_name


def several(ranks: Sequence[Introduction], most: int = 8) -> str:
    """The ranks in words, at most ``most`` of them."""
    said = [one.describe() for one in ranks[:most]]
    return ", ".join(said) + (f" and {len(ranks) - most} more" if len(ranks) > most else "")


def this_system() -> str:
    """Identifier shared by the processes whose pids this process can see; equal host names do not imply that.

    Containers and copies of a virtual machine often share a host name, but not the boot and the process namespace.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:  # not Linux: other processes are not known
        return uuid.uuid4().hex[:12]
    return hashlib.sha256(f"{boot} {namespace}".encode()).hexdigest()[:12]


def process_in(seat: str) -> str:
    """:attr:`Introduction.process` of an :attr:`Introduction.seat`."""
    return seat.partition(" (")[0]


def is_dead(seat: str) -> bool:
    """Whether the process of :attr:`Introduction.seat` is known to have ended; always False for other systems."""
    if not seat.endswith(f" ({this_system()})"):
        return False
    try:
        os.kill(int(seat.removeprefix("pid ").partition(" ")[0]), 0)
    except ProcessLookupError:
        return True
    except (OSError, ValueError, OverflowError):  # another user's process; no number of a process
        return False
    return False
