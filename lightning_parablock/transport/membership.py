"""Who takes part, and who is still there.

A :class:`Membership` names the ranks and the clients each of them hosts; its generation stands in every message header,
so that a group rebuilt for a new membership cannot mistake an old message for its own. A :class:`Watch` keeps one
receive pending from every peer: it fails within milliseconds of the peer's death, even in the middle of a transfer (the
canary), and brings the peer's heartbeats, whose absence shows a frozen process or a cut link.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from enum import IntEnum
from typing import TypeVar

import torch
import torch.distributed as dist

from lightning_parablock.errors import PeerError, PeerLostError, PeerTimeoutError
from lightning_parablock.transport.stop_point import StopPoint
from lightning_parablock.transport.wires import open_group

T = TypeVar("T")

_FOREVER = timedelta(days=3650)  # gloo closes every pair once a wait runs out, so the canary's must not
_GRACE_S = 0.5
_LAST_WORDS_BYTES = 2048
_LAST_RESORT_S = 60.0
_STRAY_S = 30.0  # a peer that took its part in a collective may end its training before this rank has the result


class Sign(IntEnum):
    """What one heartbeat says."""

    ALIVE = 0
    LEAVING = 1
    FAILED = 2


@dataclass(frozen=True)
class Membership:
    """The ranks of a run and their clients.

    Attributes:
        generation: 0 at the start; one more for every rebuilt group.
        hosts: For each rank the name of its machine, for messages.
        clients: For each rank the ids of the clients it hosts, ascending.
        rank: This process.
        sites: For each rank the name of its site, for messages; empty where sites have no names.
    """

    generation: int
    hosts: tuple[str, ...]
    clients: tuple[tuple[int, ...], ...]
    rank: int
    sites: tuple[str, ...] = ()

    @property
    def n_ranks(self) -> int:
        """Number of ranks."""
        return len(self.clients)

    @property
    def peers(self) -> list[int]:
        """The other ranks."""
        return [rank for rank in range(self.n_ranks) if rank != self.rank]

    def describe(self, rank: int) -> str:
        """For messages: ``client 2 (rank 2 on c)``, or ``site hub (client 2, rank 2 on c)`` where sites have names."""
        clients = self.clients[rank]
        who = f"client {clients[0]}" if len(clients) == 1 else f"clients {', '.join(map(str, clients))}"
        where = f"rank {rank} on {self.hosts[rank]}"
        return f"site {self.sites[rank]} ({who}, {where})" if self.sites else f"{who} ({where})"


@dataclass
class _Peer:
    """What is known of one peer. ``seen_s`` is monotonic time."""

    seen_s: float
    ended: Sign | None = None
    lost_s: float | None = None
    lost_why: str = ""
    rounds: int | None = None  # in all, once it has trained its last one


class Watch:
    """Hears the signs of life of every peer and gives this rank's own.

    Args:
        membership: The ranks of the default process group. Collective: every rank must construct its watch at the same
            point, since it opens a gloo group that nothing else uses.
        heartbeat_s: Seconds between two signs of life.
        silence_limit_s: Seconds without one after which a peer counts as frozen or cut off.

    Threads: two daemon threads a peer and one clock, started here; all methods may be called from any thread.
    """

    def __init__(self, membership: Membership, heartbeat_s: float, silence_limit_s: float) -> None:
        self._group = open_group("gloo", silence_limit_s)
        self._membership = membership
        self._heartbeat_s = heartbeat_s
        self._silence_limit_s = silence_limit_s
        self._last_resort_s = max(_LAST_RESORT_S, silence_limit_s)
        self._peers = {rank: _Peer(time.monotonic()) for rank in membership.peers}
        self._changed = threading.Condition()
        self.stop_point = StopPoint(membership.peers, self._say_pledge)
        self._pledge = 0
        self._rounds: int | None = None
        self._last_word: Sign | None = None
        self._last_words = ""
        self._told = False
        self._threads: list[threading.Thread] = []
        for rank in self._membership.peers:
            self._start(self._listen, rank, f"parablock-hear-{rank}")
            self._start(self._speak, rank, f"parablock-speak-{rank}")
        self._start(self._keep_time, None, "parablock-clock")

    def check(self) -> None:
        """Raise what is known of peers that are lost or silent for too long; for the training thread.

        Raises:
            PeerLostError: a peer's process ended or failed.
            PeerTimeoutError: a peer has been silent for longer than the limit.
        """
        error = self._known()
        if error is not None:
            self._told = True
            raise error

    def has_lost(self, rank: int) -> bool:
        """Whether a rank has failed, ended early or been silent for too long; False for this rank itself."""
        peer = self._peers.get(rank)
        if peer is None:
            return False
        return peer.lost_s is not None or time.monotonic() - peer.seen_s > self._silence_limit_s

    def announce_end(self, rounds: int) -> None:
        """Tell the peers, with the next sign of life, that this rank takes part in ``rounds`` rounds and no more."""
        self._rounds = rounds

    def check_takes_part(self, round_index: int) -> None:
        """Raise if a peer is known to have ended its training before this round.

        Raises:
            PeerError: names the peer.
        """
        for rank, peer in self._peers.items():
            if peer.rounds is not None and round_index >= peer.rounds:
                raise self._ended_alone(rank, peer.rounds)

    def explain(self, cause: Exception, rank: int) -> PeerError:
        """Turn a failed transfer with ``rank`` into the error to show, naming whoever was lost first."""
        known = self.cause_of(cause)
        if isinstance(known, PeerError):
            return known
        return PeerLostError(f"the connection to {self._membership.describe(rank)} broke: {cause}")

    def guard(self, what: str, collective: Callable[[], T]) -> T:
        """Run a collective operation of the default group so that a lost peer ends it, and Ctrl-C and SIGTERM too.

        Args:
            what: For messages, e.g. "barrier pre_setup".
            collective: Runs on a daemon thread of its own, which is left behind where it cannot end.

        Raises:
            PeerError: a peer was lost or silent for too long while the operation waited for it.
        """
        result: list[T] = []
        failure: list[Exception] = []
        finished = threading.Event()

        def run() -> None:
            try:
                result.append(collective())
            except Exception as error:
                failure.append(error)
            finished.set()

        thread = threading.Thread(target=run, daemon=True, name=f"parablock-{what}")
        thread.start()
        while not finished.wait(0.05):
            if self._left_alone() is not None and not finished.wait(_STRAY_S):
                self._refuse_stray()
            # Whoever failed may have done its part before; then everybody can come to the same conclusion.
            if self._known() is not None and not finished.wait(_GRACE_S):
                self.check()
        thread.join(_GRACE_S)  # it has nothing left to do, and must not be alive when the process ends
        if failure:
            raise self.cause_of(failure[0]) from failure[0]
        return result[0]

    def cause_of(self, error: Exception) -> Exception:
        """The loss of a peer that is behind an error, where there is one; else the error itself.

        Waits a moment for the watch to notice, since a transfer may fail before the canary does.
        """
        if isinstance(error, PeerError):
            return error
        with self._changed:
            self._changed.wait_for(lambda: self._first_lost() is not None, timeout=4 * _GRACE_S)
        return self._known() or error

    def close(self, limit_s: float) -> list[int]:
        """Say good-bye, wait until every peer has done so, at most ``limit_s``, and then release the group.

        Returns:
            The ranks that had not said good-bye by then.
        """
        self._say_last(Sign.LEAVING, "")
        deadline_s = time.monotonic() + limit_s
        with self._changed:
            self._changed.wait_for(lambda: not self._remaining(), timeout=limit_s)
        remaining = self._remaining()
        # All of them, not only the speakers: Python aborts a process that ends while a thread frees a process group.
        for thread in self._threads if not remaining else []:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        if not remaining and self._first_lost() is None and not any(t.is_alive() for t in self._threads):
            dist.destroy_process_group(self._group)
            del self._group
        return remaining

    def abort(self, last_words: str) -> None:
        """Tell the peers that this rank ends on an error, and on which; waits only a moment for them to do the same."""
        self._say_last(Sign.FAILED, last_words)
        deadline_s = time.monotonic() + _GRACE_S
        # Python aborts a process that ends while a thread comes back from gloo; clients often fail together.
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

    def _left_alone(self) -> int | None:
        """A peer that has ended its training while this rank has not: it comes to no more collective of training."""
        if self._rounds is not None:
            return None
        return next((rank for rank, peer in self._peers.items() if peer.rounds is not None), None)

    def _refuse_stray(self) -> None:
        rank = self._left_alone()
        if rank is not None:
            raise self._ended_alone(rank, self._peers[rank].rounds)

    def _ended_alone(self, rank: int, rounds: int | None) -> PeerError:
        return PeerError(
            f"{self._membership.describe(rank)} ended its training after {rounds} rounds, by itself, which the other "
            "clients cannot see: where trainer.should_stop is set or batches are skipped, all clients must decide "
            "alike (EarlyStopping does; else ask trainer.strategy.reduce_boolean_decision at the same batch)"
        )

    def _known(self) -> PeerError | None:
        lost = self._first_lost()
        if lost is not None:
            return PeerLostError(f"{self._membership.describe(lost)} {self._peers[lost].lost_why}")
        now_s = time.monotonic()
        silent = [(peer.seen_s, rank) for rank, peer in self._peers.items() if peer.ended is None]
        if not silent or now_s - min(silent)[0] <= self._silence_limit_s:
            return None
        seen_s, rank = min(silent)
        return PeerTimeoutError(
            f"{self._membership.describe(rank)} has given no sign of life for {now_s - seen_s:.0f} s (limit "
            f"exchange_timeout_s={self._silence_limit_s:g}): its process is frozen or its link is cut"
        )

    def _remaining(self) -> list[int]:
        return [rank for rank, peer in self._peers.items() if peer.ended is None and peer.lost_s is None]

    def _first_lost(self) -> int | None:
        # When one rank fails the others soon follow: the first one is the cause.
        lost = [(peer.lost_s, rank) for rank, peer in self._peers.items() if peer.lost_s is not None]
        return min(lost)[1] if lost else None

    def _say_pledge(self, batch: int) -> None:
        with self._changed:
            self._pledge = batch
            self._changed.notify_all()

    def _say_last(self, sign: Sign, last_words: str) -> None:
        with self._changed:
            if self._last_word is None:
                self._last_word, self._last_words = sign, last_words
            self._changed.notify_all()

    # --- threads ------------------------------------------------------------------------------------------------------

    def _start(self, target: Callable[..., None], rank: int | None, name: str) -> None:
        thread = threading.Thread(target=target, args=() if rank is None else (rank,), daemon=True, name=name)
        self._threads.append(thread)
        thread.start()

    def _listen(self, rank: int) -> None:
        heard = torch.zeros(3, dtype=torch.int64)
        peer = self._peers[rank]
        while peer.ended is None and peer.lost_s is None:
            try:
                self._receive(heard, rank)
                sign, rounds, pledge = heard.tolist()
                self.stop_point.hear(rank, pledge)
                peer.rounds = rounds if rounds >= 0 else None
                self._hear(rank, peer, Sign(sign))
            except Exception as error:  # gloo raises RuntimeError and others; whatever it is, nothing more can come
                reason = (str(error).splitlines() or [type(error).__name__])[0][:160]
                self._lose(peer, f"was lost: its process ended or its connection closed ({reason})")

    def _hear(self, rank: int, peer: _Peer, sign: Sign) -> None:
        peer.seen_s = time.monotonic()
        if sign == Sign.FAILED:
            words = torch.zeros(_LAST_WORDS_BYTES, dtype=torch.uint8)
            with contextlib.suppress(Exception):  # the sign alone says enough where the rest does not arrive
                self._receive(words, rank)
            text = bytes(words.tolist()).rstrip(b"\0").decode(errors="replace")
            self._lose(peer, f"ended on an error of its own: {text or 'see its log'}")
        elif sign == Sign.LEAVING:
            with self._changed:
                peer.ended = sign
                self._changed.notify_all()

    def _receive(self, into: torch.Tensor, rank: int) -> None:
        work = dist.irecv(into, src=rank, group=self._group)
        assert work is not None
        work.wait(_FOREVER)

    def _send(self, tensor: torch.Tensor, rank: int) -> None:
        work = dist.isend(tensor, dst=rank, group=self._group)
        assert work is not None
        work.wait(_FOREVER)

    def _lose(self, peer: _Peer, why: str) -> None:
        with self._changed:
            peer.lost_s, peer.lost_why = time.monotonic(), why
            self._changed.notify_all()

    def _speak(self, rank: int) -> None:
        said = 0
        while True:
            with self._changed:
                self._changed.wait_for(
                    lambda said=said: self._last_word is not None or self._pledge != said, timeout=self._heartbeat_s
                )
                word, said = self._last_word, self._pledge
            try:
                sign = Sign.ALIVE if word is None else word
                rounds = -1 if self._rounds is None else self._rounds
                self._send(torch.tensor([sign, rounds, said], dtype=torch.int64), rank)
                if word == Sign.FAILED:
                    text = self._last_words.encode()[:_LAST_WORDS_BYTES].ljust(_LAST_WORDS_BYTES, b"\0")
                    self._send(torch.frombuffer(bytearray(text), dtype=torch.uint8), rank)
            except Exception:  # the listener of the same peer reports the loss
                return
            if word is not None:
                return

    def _keep_time(self) -> None:
        """A process that was itself stopped must not blame the others for the silence it slept through.

        And where the training thread is stuck in somebody else's blocking call, nobody but this thread can end it.
        """
        tick_s = min(self._heartbeat_s, 0.2)
        last_s, known_since_s = time.monotonic(), None
        while self._last_word is None:
            with self._changed:
                self._changed.wait_for(lambda: self._last_word is not None, timeout=tick_s)
            now_s = time.monotonic()
            pause_s = now_s - last_s - tick_s
            if pause_s > self._heartbeat_s:
                for peer in self._peers.values():
                    peer.seen_s += pause_s
            last_s = now_s
            error = None if self._told else self._known()
            known_since_s = (known_since_s or now_s) if error is not None else None
            if error is not None and known_since_s is not None and now_s - known_since_s > self._last_resort_s:
                self._end_process(error)

    def _end_process(self, error: PeerError) -> None:
        print(
            f"parablock: {type(error).__name__}: {error}; the training thread has not come back for "
            f"{self._last_resort_s:g} s since then, so this process ends here",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
