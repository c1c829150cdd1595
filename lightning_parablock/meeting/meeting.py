"""The meeting of the ranks in a store, where they introduce themselves and get their numbers and names."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, replace

from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ConfigurationError, PeerLostError, PeerTimeoutError
from lightning_parablock.meeting.introductions import (
    NO_NUMBER,
    Introduction,
    Meeting,
    in_order,
    is_dead,
    process_in,
    several,
)
from lightning_parablock.system.limited_wait import LimitedWait

_POLL_S = 0.05
_LAST_LOOK_S = 1.0
"""Time for which the rank that hosts the store keeps it open after an error, so that the others can read the reason."""

_OTHER_PORT = "give each run a port of its own, and end what is left of earlier ones"


class MeetingTable:
    """The part of the store where ranks meet.

    A process of another run, or with the number or name of another rank, is refused alone: the others keep waiting for
    the right one, and report why it was refused. A process that stops waiting frees its seat for another.

    Args:
        store: Store shared by all ranks.
        own: Introduction of this rank; without a number it gets the first free one.
        where: Address of the store, for messages.
        hosts_store: Whether the store ends with this process.
    """

    def __init__(self, store: Store, own: Introduction, where: str, *, hosts_store: bool = False) -> None:
        self._store = PrefixStore("meeting", store)
        self._own, self._where, self._hosts_store = own, where, hosts_store
        self._gets_number = own.rank == NO_NUMBER
        self._taken: dict[str, str] = {}

    def meet(self, wait: LimitedWait) -> Meeting:
        """Introduce this rank and wait until all others have done so; collective.

        Raises:
            ConfigurationError: this rank does not belong to the run, or names or numbers of the ranks are inconsistent.
            PeerLostError: the rank that hosts the store has given up.
            PeerTimeoutError: not all ranks have arrived within the limit.
        """
        try:
            self._introduce()
            self._wait_for_all(wait)
        except (ConfigurationError, PeerTimeoutError, KeyboardInterrupt) as error:
            self._leave(error)
            raise
        ranks = in_order([self._read(rank) for rank in range(self._own.n_ranks)])
        run_id = _text(self._store.compare_set("run id", "", uuid.uuid4().hex))
        return Meeting(ranks, ranks.index(self._own), run_id)

    def _introduce(self) -> None:
        own = self._own
        self._refuse_closed()
        self._agree("run", own.run, lambda other: f"that is {other}, and this is {own.run}; {_OTHER_PORT}")
        self._agree("names", str(own.site is not None), lambda _: _all_or_none(own))
        if own.site is not None:
            self._take(
                f"site {own.site}",
                own.seat,
                lambda other: f"the name is taken by {other}; give each site a name of its own",
            )
        if self._gets_number:
            self._own = replace(own, rank=self._free_number())
        else:
            self._take(f"number {own.rank}", own.seat, lambda other: f"the number is taken by {other}; {_OTHER_PORT}")
        self._store.set(_key(self._own.rank), json.dumps(asdict(self._own)))
        self._taken[_key(self._own.rank)] = ""

    def _wait_for_all(self, wait: LimitedWait) -> None:
        keys = [_key(rank) for rank in range(self._own.n_ranks)]
        while not self._store.check(keys):
            self._refuse_closed()
            if wait.is_over:
                raise PeerTimeoutError(
                    f"{self._missing()} did not come to {self._where} within meeting_timeout_s={wait.limit_s:g} s: "
                    f"start all {self._own.n_ranks} processes of the run within that time, and let each reach "
                    f"{self._where} by TCP"
                )
            wait.report(lambda: f"{self._missing()} at {self._where}")
            time.sleep(_POLL_S)

    def _agree(self, key: str, value: str, why: Callable[[str], str]) -> None:
        """Write a key to which all ranks must write the same value."""
        found = _text(self._store.compare_set(key, "", value))
        if found != value:
            raise self._refusal(why(found))

    def _take(self, key: str, value: str, why: Callable[[str], str]) -> None:
        """Write a key that only one rank may write."""
        found = self._try_to_take(key, value)
        if found != value:
            raise self._refusal(why(process_in(found)))

    def _try_to_take(self, key: str, value: str) -> str:
        found = _text(self._store.compare_set(key, "", value))
        if found != value and is_dead(found):
            found = _text(self._store.compare_set(key, found, value))
        if found == value:
            self._taken[key] = value
        return found

    def _free_number(self) -> int:
        seats = (self._try_to_take(f"number {rank}", self._own.seat) for rank in range(self._own.n_ranks))
        number = next((rank for rank, seat in enumerate(seats) if seat == self._own.seat), None)
        if number is None:
            ranks = [self._read(rank) for rank in self._here()]
            raise self._refusal(f"all {self._own.n_ranks} (num_nodes) have come: {several(ranks)}; {_OTHER_PORT}")
        return number

    def _refusal(self, why: str) -> ConfigurationError:
        message = f"{self._own.describe()} cannot join the run at {self._where}: {why}"
        self._store.set("refused", message)
        return ConfigurationError(message)

    def _leave(self, error: BaseException) -> None:
        """Free the seat; if the store ends with this process, let the others read the reason first."""
        if self._hosts_store:
            why = str(error) or type(error).__name__
            self._store.set("closed", f"{self._own.describe()}, which hosts the meeting, gave up: {why}")
            others, deadline_s = set(self._here()) - {self._own.rank}, time.monotonic() + _LAST_LOOK_S
            while self._store.add("gone", 0) < len(others) and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)
            return
        self._store.add("gone", 1)
        for key in self._taken:
            self._store.delete_key(key)
        self._taken = {}

    def _refuse_closed(self) -> None:
        if self._store.check(["closed"]):
            self._store.add("gone", 1)
            raise PeerLostError(f"the meeting at {self._where} is over: {_text(self._store.get('closed'))}")

    def _here(self) -> list[int]:
        return [rank for rank in range(self._own.n_ranks) if self._store.check([_key(rank)])]

    def _missing(self) -> str:
        here = self._here()
        absent = [rank for rank in range(self._own.n_ranks) if rank not in here]
        came = several([self._read(rank) for rank in here])
        refused = f"; refused: {_text(self._store.get('refused'))}" if self._store.check(["refused"]) else ""
        if self._gets_number:
            who = f"{len(absent)} of {self._own.n_ranks} sites"
        else:
            who = f"{'rank' if len(absent) == 1 else 'ranks'} {', '.join(map(str, absent))} of {self._own.n_ranks}"
        return f"{who} (here: {came}{refused})"

    def _read(self, rank: int) -> Introduction:
        what = f"the introduction of rank {rank} at {self._where}"
        return Introduction.from_json(self._store.get(_key(rank)), what)


def _all_or_none(own: Introduction) -> str:
    this, others = ("no name", "names") if own.site is None else ("a name", "no names")
    return f"it has {this}, and the others have {others}; give every process its own --site NAME, or none"


def _text(data: bytes) -> str:
    return data.decode(errors="replace")


def _key(rank: int) -> str:
    return f"rank {rank}"
