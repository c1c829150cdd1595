"""The ranks of a run introduce themselves to each other in a store, and get their numbers and names.

Where sites have names, rank r of the run is the r-th of the sorted names, whatever number its launcher gave it: a site
keeps its number, its share of the data and its part of a checkpoint from run to run.
"""

from __future__ import annotations

import itertools
import json
import re
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ConfigurationError, PeerTimeoutError
from lightning_parablock.transport.limited_wait import LimitedWait

_MAX_NAME_LENGTH = 64
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_POLL_S = 0.05


@dataclass(frozen=True)
class Introduction:
    """What one rank says of itself before the run.

    Attributes:
        rank: The number that the launcher gave it.
        n_ranks: How many ranks it expects, itself included.
        site: The name of its site, or None.
        host: Name of its machine.
        pid: Its process.
        job: What its launcher calls the job; empty where there is no launcher or it has no name for it.
    """

    rank: int
    n_ranks: int
    site: str | None
    host: str
    pid: int
    job: str = ""

    def describe(self) -> str:
        """For messages: ``site a (pid 12 on host h)`` or ``rank 0 (pid 12 on host h)``."""
        who = f"rank {self.rank}" if self.site is None else f"site {self.site}"
        return f"{who} (pid {self.pid} on {self.host})"


@dataclass(frozen=True)
class Meeting:
    """The ranks that have met.

    Attributes:
        ranks: In the order of their numbers in the run.
        rank: This process' number in the run.
        run_id: The same on every rank, and on no rank of another run.
    """

    ranks: tuple[Introduction, ...]
    rank: int
    run_id: str

    @property
    def site_names(self) -> tuple[str, ...]:
        """For each rank the name of its site; empty where sites have no names."""
        return tuple(one.site for one in self.ranks if one.site is not None)


def check_site_name(name: object) -> None:
    """Raise a ConfigurationError unless a site may have this name.

    Raises:
        ConfigurationError: it is not 1 to 64 letters, digits, dots, underscores and hyphens, a letter or digit first.
    """
    if isinstance(name, str) and len(name) <= _MAX_NAME_LENGTH and _NAME.fullmatch(name):
        return
    raise ConfigurationError(
        f"site must be a name of 1 to {_MAX_NAME_LENGTH} letters (a-z, A-Z), digits, '.', '_' and '-' that begins with "
        f"a letter or a digit, got {name!r}"
    )


def in_order(ranks: Sequence[Introduction]) -> tuple[Introduction, ...]:
    """The ranks in the order of their numbers in the run: by the names of the sites, else by the launcher's numbers.

    Raises:
        ConfigurationError: some ranks name their site and others do not, or two have the same name.
    """
    ranks = sorted(ranks, key=lambda one: one.rank)
    unnamed = [one for one in ranks if one.site is None]
    if len(unnamed) == len(ranks):
        return tuple(ranks)
    if unnamed:
        named = next(one for one in ranks if one.site is not None)
        raise ConfigurationError(
            f"some sites have names and others do not: {named.describe()} has one, "
            f"{', '.join(one.describe() for one in unnamed)} has none; give every process its own --site NAME, or none"
        )
    by_name = tuple(sorted(ranks, key=lambda one: str(one.site)))
    for one, other in itertools.pairwise(by_name):
        if one.site == other.site:
            raise ConfigurationError(
                f"two processes have the site name {one.site!r}: {_seat_of(one)} and {_seat_of(other)}; a site is one "
                "process: give each a name of its own"
            )
    return by_name


def meet(store: Store, own: Introduction, wait: LimitedWait, where: str) -> Meeting:
    """Introduce this rank and wait until all others have done so; collective.

    A process that does not belong here, or comes with the number or name of another, is refused alone: the others
    keep waiting for the right one, and report why it was refused.

    Args:
        store: That all ranks share.
        own: This rank.
        wait: The limit, which may have begun before.
        where: The store's address, for messages.

    Raises:
        ConfigurationError: names or numbers of the ranks do not fit together.
        PeerTimeoutError: not all ranks have come within the limit.
    """
    table = _Table(store, own, where)
    table.introduce()
    ranks = in_order(table.wait_for_all(wait))
    return Meeting(ranks, ranks.index(own), table.run_id())


class _Table:
    """The part of the store where ranks meet."""

    def __init__(self, store: Store, own: Introduction, where: str) -> None:
        self._store = PrefixStore("meeting", store)
        self._own, self._where = own, where

    def introduce(self) -> None:
        """Take this rank's seat, or refuse it where it does not belong here or the seat is taken."""
        own = self._own
        self._take("run", _run_of(own), lambda other: f"it belongs to {other}, and this is {_run_of(own)}")
        if own.site is not None:
            self._take(f"site {own.site}", _seat_of(own), lambda other: f"the name is taken by {other}")
        try:
            self._take(f"number {own.rank}", _seat_of(own), lambda other: f"the number is taken by {other}")
        except ConfigurationError:
            self._store.delete_key(f"site {own.site}")
            raise
        self._store.set(_key(own.rank), json.dumps(asdict(own)))

    def wait_for_all(self, wait: LimitedWait) -> list[Introduction]:
        """The introductions of all ranks, in the launcher's order."""
        keys = [_key(rank) for rank in range(self._own.n_ranks)]
        while not self._store.check(keys):
            if wait.is_over:
                raise PeerTimeoutError(
                    f"{self._missing()} did not come to {self._where} within meeting_timeout_s={wait.limit_s:g} s: "
                    f"start all {self._own.n_ranks} processes of the run within that time, and let each reach "
                    f"{self._where} by TCP"
                )
            wait.report(lambda: f"{self._missing()} at {self._where}")
            time.sleep(_POLL_S)
        return [self._read(rank) for rank in range(self._own.n_ranks)]

    def run_id(self) -> str:
        """A word that all ranks of this run share."""
        return self._store.compare_set("run id", "", uuid.uuid4().hex).decode()

    def _take(self, key: str, value: str, why: Callable[[str], str]) -> None:
        """Write a key that only one rank may write, or that all must write alike."""
        found = self._store.compare_set(key, "", value).decode()
        if found == value:
            return
        message = f"{self._own.describe()} cannot join the run at {self._where}: {why(found)}"
        self._store.set("refused", message)
        raise ConfigurationError(
            f"{message}; give each site a name and each run a port of its own, and end what is left of earlier runs"
        )

    def _missing(self) -> str:
        here = [rank for rank in range(self._own.n_ranks) if self._store.check([_key(rank)])]
        absent = [str(rank) for rank in range(self._own.n_ranks) if rank not in here]
        came = ", ".join(sorted(self._read(rank).describe() for rank in here))
        refused = f"; refused: {self._store.get('refused').decode()}" if self._store.check(["refused"]) else ""
        which = "rank" if len(absent) == 1 else "ranks"
        return f"{which} {', '.join(absent)} of {self._own.n_ranks} (here: {came}{refused})"

    def _read(self, rank: int) -> Introduction:
        return Introduction(**json.loads(self._store.get(_key(rank))))


def _key(rank: int) -> str:
    return f"rank {rank}"


def _seat_of(own: Introduction) -> str:
    return f"pid {own.pid} on {own.host}"


def _run_of(own: Introduction) -> str:
    return f"a run of {own.n_ranks} processes" + (f" ({own.job})" if own.job else "")
