"""Connections between the ranks: every rank opens a listener and shares its address; the others try it before gloo.

Where a firewall drops its packets, gloo itself waits for its whole time limit, half an hour by default, and names no
rank. Of two ranks, gloo makes the one with the lower address listen and the other one connect; so does the trial.
"""

from __future__ import annotations

import contextlib
import json
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch.distributed import DistError
from torch.distributed.distributed_c10d import PrefixStore, Store

from lightning_parablock.errors import ConfigurationError, PeerError, PeerLostError, PeerTimeoutError, ProtocolError
from lightning_parablock.meeting.addresses import INTERFACE_VARIABLE, is_loopback, own_address, resolved
from lightning_parablock.meeting.devices import expect_peers, open_listeners
from lightning_parablock.meeting.gloo_peers import GlooPeers
from lightning_parablock.meeting.introductions import Meeting
from lightning_parablock.meeting.private_links import PrivateLinks
from lightning_parablock.settings.ports import PortRange
from lightning_parablock.system.bounded_json import parsed
from lightning_parablock.system.limited_wait import LimitedWait
from lightning_parablock.system.reading import reading

TRY_S = 10.0
"""Time limit for one connection: packets dropped by a firewall are not answered."""
_POLL_S = 0.05
_READ_LIMIT_S = 5.0


@dataclass(frozen=True)
class Ways:
    """Connections between the ranks.

    Attributes:
        master: Host name or address of the rendezvous.
        one_host: Whether all ranks run on one machine.
        ports: Range of ports for this rank's listener; None for any port.
        links: Addresses of the sites of a federation, and no others are used; None for any.
    """

    master: str
    one_host: bool
    ports: PortRange | None
    links: PrivateLinks | None = None

    def open(self, store: Store, meeting: Meeting, wait: LimitedWait) -> None:
        """Open this rank's listener and make sure that the ranks can connect to each other; collective.

        Raises:
            ConfigurationError: there is no address or port to listen on, or a rank cannot reach another one; raised on
                every rank.
            PeerTimeoutError: a rank did not take part within the limit.
            PeerLostError: the rank that hosts the rendezvous ended.
        """
        try:
            self._open(_Table(PrefixStore(f"ways/{meeting.run_id}", store), meeting, wait), meeting)
        except DistError as error:
            raise PeerLostError(
                f"the rank that hosts the rendezvous at {self.master} ended before the ranks were connected; see the "
                "output there"
            ) from error

    def _open(self, table: _Table, meeting: Meeting) -> None:
        problem = ""
        try:
            address = self._own_address(table)
            mine = [(listener.address, listener.port) for listener in open_listeners(address, self.ports)]
            if self.links is not None:
                self.links.check_listeners(address for address, _ in mine)
        except PeerError:  # every rank notices it by itself
            raise
        except (OSError, RuntimeError) as error:  # system, gloo or configuration errors: the others are waiting
            mine, problem = [], str(error)
        table.agree("listeners", problem)
        if not self.one_host:
            everyones = table.exchange("addresses", mine)
            table.agree("ways", "; ".join(_foreign(meeting, everyones, self.links) or _blocked(meeting, everyones)))
            if self.links is not None:
                expect_peers(_peers(meeting, everyones, self.links))

    def _own_address(self, table: _Table) -> str:
        reached_as = self._reached_as(table)
        if self.links is not None:
            return self.links.own
        return own_address(self.master, one_host=self.one_host, reached_as=reached_as)

    def _reached_as(self, table: _Table) -> str | None:
        """Address by which ranks on other machines reach the rendezvous, if there are such ranks."""
        if self.one_host:
            return None
        found = table.exchange("rendezvous", resolved(self.master))
        with reading("the addresses of the rendezvous"):
            return next((address for address in found if address is not None and not is_loopback(address)), None)


class _Table:
    """Values that the ranks exchange through the store."""

    def __init__(self, store: Store, meeting: Meeting, wait: LimitedWait) -> None:
        self._store, self._meeting, self._wait = store, meeting, wait

    def exchange(self, what: str, value: Any) -> list[Any]:
        """Values of all ranks, in rank order; collective."""
        ranks = range(len(self._meeting.ranks))
        self._store.set(f"{what}/{self._meeting.rank}", json.dumps(value))
        while missing := [rank for rank in ranks if not self._store.check([f"{what}/{rank}"])]:
            self._report(what, lambda missing=missing: ", ".join(self._meeting.ranks[r].describe() for r in missing))
            time.sleep(_POLL_S)
        return [self._read(what, rank) for rank in ranks]

    def _read(self, what: str, rank: int) -> Any:
        with reading(f"the {what} of {self._meeting.ranks[rank].describe()}"):
            return parsed(self._store.get(f"{what}/{rank}"))

    def agree(self, what: str, problem: str) -> None:
        """Raise the same error on every rank if any of them has a problem; collective."""
        problems = [str(one) for one in self.exchange(f"problems of {what}", problem) if one]
        if problems:
            self._let_others_read(what)
            raise ConfigurationError("; ".join(problems))

    def _let_others_read(self, what: str) -> None:
        # The store ends with the rank that hosts it.
        keys = [f"read {what}/{rank}" for rank in range(len(self._meeting.ranks))]
        deadline_s = time.monotonic() + _READ_LIMIT_S
        with contextlib.suppress(DistError):  # that rank has ended: it has read everything
            self._store.set(keys[self._meeting.rank], "")
            while not self._store.check(keys) and time.monotonic() < deadline_s:
                time.sleep(_POLL_S)

    def _report(self, what: str, who: Callable[[], str]) -> None:
        if self._wait.is_over:
            raise PeerTimeoutError(
                f"{who()} joined the run but announced no {what} within meeting_timeout_s={self._wait.limit_s:g} s; "
                "see the output there"
            )
        self._wait.report(lambda: f"the {what} of {who()}")


def _foreign(meeting: Meeting, everyones: list[list[list[Any]]], links: PrivateLinks | None) -> list[str]:
    """Problems with addresses that ranks announce and the roster of the federation does not give to their sites."""
    found: list[str] = []
    for rank, theirs in enumerate(everyones if links is not None else []):
        for address, _ in _listeners(meeting, rank, theirs):
            try:
                assert links is not None
                links.check_peer(str(meeting.ranks[rank].site), address, "a listener")
            except ProtocolError as error:
                found.append(str(error))
    return found


def _peers(meeting: Meeting, everyones: list[list[list[Any]]], links: PrivateLinks) -> GlooPeers:
    """The sites' listeners; each has one, at its inner address."""
    places: dict[str, tuple[str, int]] = {}
    for rank, said in enumerate(everyones):
        with reading(f"the addresses of {meeting.ranks[rank].describe()}"):
            (places[str(meeting.ranks[rank].site)],) = _listeners(meeting, rank, said)
    return GlooPeers(links.federation, places.pop(links.site), places)


def _blocked(meeting: Meeting, everyones: list[list[list[Any]]]) -> list[str]:
    """Problems with the connections from this rank to those that gloo will make it connect to."""
    found: list[str] = []
    for rank, theirs in enumerate(everyones):
        for own, (address, port) in zip(everyones[meeting.rank], _listeners(meeting, rank, theirs), strict=False):
            if rank == meeting.rank or _order(own[0], own[1]) <= _order(address, port):
                continue
            why = _try(address, port)
            if why:
                found.append(
                    f"{meeting.ranks[meeting.rank].describe()} cannot connect to {meeting.ranks[rank].describe()} at "
                    f"{address}:{port}: {why}; open this way in the firewall (strategy option ports limits the ports), "
                    f"or, if the address is not the right one, name the network interface of that machine that the "
                    f"others reach: export {INTERFACE_VARIABLE}=eth0"
                )
    return found


def _listeners(meeting: Meeting, rank: int, said: Any) -> list[tuple[str, int]]:
    """Address and port of each listener of a rank."""
    with reading(f"the addresses of {meeting.ranks[rank].describe()}"):
        found = [(str(address), int(port)) for address, port in said]
        for address, port in found:
            if not _is_address(address):
                raise ValueError(f"{address!r:.80} is no address")
            if not 0 < port < 1 << 16:
                raise ValueError(f"{port} is no port")
        return found


def _is_address(text: str) -> bool:
    try:
        _order(text, 0)
    except (OSError, ValueError):  # the latter for a zero byte
        return False
    return True


def _order(address: str, port: int) -> tuple[int, bytes, int]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address.partition("%")[0]), port


def _try(address: str, port: int) -> str:
    """Reason why no connection can be opened; empty if it can."""
    try:
        socket.create_connection((address, port), timeout=TRY_S).close()
    except OSError as error:
        return str(error.strerror or error)
    return ""
