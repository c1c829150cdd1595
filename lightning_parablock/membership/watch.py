"""Liveness and progress of all ranks, and collectives that no rank enters alone.

A :class:`Watch` keeps one receive pending from every peer: it fails within milliseconds of the peer's death, even in
the middle of a transfer (the canary), and delivers the peer's heartbeats, whose absence reveals a frozen process or a
broken link. On the same channel each rank announces the collective it is about to enter, and enters it once all ranks
have announced the same one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from lightning_parablock.errors import (
    ParaBlockError,
    PeerError,
    PeerLostError,
    PeerTimeoutError,
    ProtocolError,
    ResourceError,
)
from lightning_parablock.membership.aborts import Aborts
from lightning_parablock.membership.awake import now_s
from lightning_parablock.membership.channel import Channel, reason_of
from lightning_parablock.membership.descriptors import Descriptors
from lightning_parablock.membership.membership import Membership
from lightning_parablock.membership.peers import Peers
from lightning_parablock.membership.signs import Call, Progress, Sign, Word, digest_of
from lightning_parablock.membership.stop_point import StopPoint
from lightning_parablock.system.limited_wait import LATE, LimitedWait

T = TypeVar("T")

_GRACE_S = 0.5
_POLL_S = 0.05
_LAST_RESORT_S = 60.0
_RAISE_THE_LIMIT = (
    "raise the limit (`ulimit -n`), let only the other clients connect to this one's ports, and restart all clients "
    "from the last checkpoint"
)
CLOSE_LIMIT_S = 30.0
"""Time for threads that communicate with other ranks to end when nothing is pending, in seconds."""


class Watch:
    """Receives the signs of life of every peer and sends this rank's own.

    Args:
        membership: Ranks of the default process group. Collective: every rank must construct its watch at the same
            point, since it opens a gloo group that nothing else uses.
        heartbeat_s: Seconds between two signs of life.
        silence_limit_s: Seconds without one after which a peer counts as frozen or cut off.

    Attributes:
        peers: This rank's view of the other ranks.
        stop_point: Agreement on the batch at whose end all ranks stop together.

    Threads: two daemon threads per peer and one clock, started here; all methods may be called from any thread.
    """

    def __init__(self, membership: Membership, heartbeat_s: float, silence_limit_s: float) -> None:
        self._channel = Channel(silence_limit_s)
        self._membership = membership
        self._heartbeat_s = heartbeat_s
        self._last_resort_s = max(_LAST_RESORT_S, silence_limit_s)
        self.peers = Peers(membership, heartbeat_s, silence_limit_s)
        self._changed = self.peers.changed
        self.stop_point = StopPoint(membership.peers, self._say_pledge)
        self._pledge = 0
        self._rounds = self._submitted = self._round = self._calls = -1
        self._stepped_s = now_s()
        self._outgoing: dict[int, deque[Word]] = {rank: deque() for rank in membership.peers}
        self._last_word: Sign | None = None
        self._last_words = ""
        self._told = False
        self._own_error: ResourceError | None = None
        self._descriptors = Descriptors()
        self._aborts = Aborts(self._hear_abort)
        self._threads: list[threading.Thread] = []
        for rank in self._membership.peers:
            self._start(self._listen, rank, f"parablock-hear-{rank}")
            self._start(self._speak, rank, f"parablock-speak-{rank}")
        self._start(self._keep_time, None, "parablock-clock")

    # --- state of the peers -------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Raise an error if a peer is lost or has been silent for too long; for the training thread.

        Raises:
            PeerLostError: a peer's process ended or failed.
            PeerTimeoutError: a peer has been silent for longer than the limit.
            ResourceError: this process itself cannot continue.
        """
        error = self._trouble()
        if error is not None:
            self._told = True
            raise error

    def _trouble(self) -> ParaBlockError | None:
        return self._own_error or self.peers.known()

    def explain(self, cause: Exception, rank: int) -> ParaBlockError:
        """Turn a failed transfer with ``rank`` into the error to show, naming the rank that was lost first."""
        known = self.cause_of(cause)
        if isinstance(known, ParaBlockError):
            return known
        return PeerLostError(f"the connection to {self._membership.describe(rank)} broke: {cause}")

    def cause_of(self, error: Exception) -> Exception:
        """The loss of a peer that caused an error, if there is one; otherwise the error itself.

        Waits a moment for the watch to notice, since a transfer may fail before the canary does.
        """
        if isinstance(error, PeerError):
            return error
        with self._changed:
            self._changed.wait_for(
                lambda: self._own_error is not None or self.peers.first_lost() is not None, timeout=4 * _GRACE_S
            )
        return self._trouble() or error

    # --- progress of this rank ----------------------------------------------------------------------------------------

    def note_step(self, round_index: int) -> None:
        """Record a step in a round; the peers learn of it with the next sign of life."""
        self._round, self._stepped_s = round_index, now_s()

    def note_submitted(self, round_index: int) -> None:
        """Record that the exchange of a round has been submitted; the peers learn of it with the next sign of life."""
        self._submitted = round_index

    def announce_end(self, rounds: int) -> None:
        """Tell the peers, with the next sign of life, that this rank takes part in ``rounds`` rounds and no more."""
        with self._changed:  # no word built before this change may be queued after it
            self._rounds = rounds

    def _say_pledge(self, batch: int) -> None:
        with self._changed:
            self._pledge = batch
            for words in self._outgoing.values():
                words.append(Word(Sign.ALIVE, self._progress()))
            self._changed.notify_all()

    def _progress(self) -> Progress:
        return Progress(
            self._rounds, self._submitted, self._round, int(1e3 * (now_s() - self._stepped_s)), self._pledge
        )

    # --- collectives --------------------------------------------------------------------------------------------------

    def guard(self, what: str, collective: Callable[[], T], *, limit_s: float, detail: str = "") -> T:
        """Enter a collective operation of the default group together with all peers, or not at all.

        No data is sent before every rank has announced the same operation: gloo ends the process when messages of
        different lengths meet. A lost peer ends the operation, and so do Ctrl-C and SIGTERM.

        Args:
            what: Name of the operation, for messages and to be compared, e.g. "barrier pre_setup".
            collective: The operation; runs on its own daemon thread, which is abandoned if it cannot end.
            limit_s: Seconds to wait for the peers to arrive.
            detail: Shapes and types, to be compared as well.

        Raises:
            PeerError: a peer was lost or silent for too long while the operation waited for it, or enters another one.
            PeerTimeoutError: a peer is alive but has not arrived within the limit.
        """
        call = self._announce(" ".join(filter(None, (what, detail))))
        self._await_all(call, LimitedWait(limit_s, reports=LATE))
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
        while not finished.wait(_POLL_S):
            # A rank that failed may have done its part before; then the result is the same on all ranks.
            if self._trouble() is not None and not finished.wait(_GRACE_S):
                self.check()
        thread.join(_GRACE_S)  # it has nothing left to do, and must not be alive when the process ends
        if failure:
            raise self.cause_of(failure[0]) from failure[0]
        return result[0]

    def _announce(self, identity: str) -> Call:
        with self._changed:
            self._calls += 1
            call = Call(self._calls, digest_of(identity), identity)
            for words in self._outgoing.values():
                words.append(Word(Sign.ARRIVED, self._progress(), call))
            self._changed.notify_all()
        return call

    def _await_all(self, call: Call, wait: LimitedWait) -> None:
        while True:
            self.peers.check_agree(call, self._progress())
            if not self.peers.missing(call):
                break
            if wait.is_over:
                raise PeerTimeoutError(
                    f"{call.text!r} has not begun after {wait.limit_s:g} s although every client is alive: "
                    f"{self.peers.absent(call)}; if a client needs longer than that, raise timeout"
                )
            wait.report(lambda: f"{call.text}: {self.peers.absent(call)}")
            self.check()
            if any(self.peers.is_gone(rank) for rank in self.peers.missing(call)):
                raise PeerLostError(f"{call.text!r} cannot begin: {self.peers.absent(call)}")
            with self._changed:
                self._changed.wait_for(lambda: not self.peers.missing(call), timeout=_POLL_S)
        self.peers.forget(call)

    # --- the end ------------------------------------------------------------------------------------------------------

    def close(self, limit_s: float) -> list[int]:
        """Sign off, wait until every peer has done so, at most ``limit_s``, and then release the group.

        Returns:
            The ranks that had not signed off by then.

        Raises:
            PeerError: a peer was lost before it had signed off.
        """
        self._say_last(Sign.LEAVING, "")
        wait = LimitedWait(limit_s, reports=LATE)
        while (remaining := self.peers.remaining()) and not wait.is_over:
            wait.report(lambda: f"the end of the run at {self._named(self.peers.remaining())}")
            self.check()
            with self._changed:
                self._changed.wait_for(lambda: not self.peers.remaining(), timeout=_POLL_S)
        self.check()
        # All threads, not only those that send: Python aborts if the process ends while a thread frees a process group.
        deadline_s = time.monotonic() + CLOSE_LIMIT_S
        for thread in self._threads if not remaining else []:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        self._descriptors.release()
        self._aborts.close()
        if not remaining and not any(t.is_alive() for t in self._threads):
            self._channel.close()
        return remaining

    def _named(self, ranks: list[int]) -> str:
        return ", ".join(map(self._membership.describe, ranks))

    def abort(self, last_words: str) -> None:
        """Tell the peers that this rank ends with an error, and which; waits only briefly for them to do the same."""
        self._say_last(Sign.FAILED, last_words)
        self._descriptors.release()
        deadline_s = time.monotonic() + _GRACE_S
        # Python aborts if the process ends while a thread returns from gloo; clients often fail together.
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))

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
        while not self.peers.is_gone(rank):
            try:
                word = self._channel.hear(rank)
                self.stop_point.hear(rank, word.progress.pledge)
                if word.sign == Sign.FAILED:
                    words = self._channel.hear_last_words(rank) or word.call.text or "see its log"
                    self.peers.lose(rank, f"ended on an error of its own: {words}")
                else:
                    self.peers.hear(rank, word)
            except ProtocolError as error:
                self.peers.lose(rank, f"was lost: it sent {error}")
            except Exception as error:  # gloo raises RuntimeError and others; in any case nothing more can arrive
                self.peers.lose(rank, f"was lost: its process ended or its connection closed ({reason_of(error)})")

    def _speak(self, rank: int) -> None:
        words = self._outgoing[rank]
        while True:
            with self._changed:
                self._changed.wait_for(lambda: words or self._last_word is not None, timeout=self._heartbeat_s)
                last = self._last_word
                saying = list(words)
                words.clear()
                if last is not None or not saying:
                    # The full last words follow, but may not arrive if gloo's own thread has aborted.
                    begun = Call(text=self._last_words)
                    saying.append(Word(Sign.ALIVE if last is None else last, self._progress(), begun))
            try:
                for word in saying:
                    self._channel.say(word, rank)
                if last == Sign.FAILED:
                    self._channel.say_last_words(self._last_words, rank)
            except Exception:  # the listener of the same peer reports the loss
                return
            if last is not None:
                return

    def _keep_time(self) -> None:
        """Watch the limits: if the training thread is stuck in other code, only this thread can end the process."""
        tick_s, known_since_s = min(self._heartbeat_s, 0.2), None
        while self._last_word is None:
            with self._changed:
                self._changed.wait_for(lambda: self._last_word is not None, timeout=tick_s)
            shortage = self._descriptors.shortage()
            if shortage is not None:
                self._cannot_continue(shortage, _RAISE_THE_LIMIT)
            error = self._trouble()  # ticks
            now = now_s()
            known_since_s = (known_since_s or now) if error is not None and not self._told else None
            if error is not None and known_since_s is not None and now - known_since_s > self._last_resort_s:
                self._end_process(error)

    def _hear_abort(self) -> None:
        """Handle an abort, on the gloo thread that caused it; C++ has printed the reason."""
        shortage = self._descriptors.shortage()
        if shortage is not None:
            self._cannot_continue(shortage, _RAISE_THE_LIMIT)
        else:
            self._cannot_continue(
                "native code has given up; its reason is printed above, after 'terminate called'",
                "where it is about lengths in bytes, your own code calls collectives of torch.distributed with tensors "
                "of different sizes, or in another order, on different clients",
            )

    def _cannot_continue(self, why: str, advice: str) -> None:
        if self._own_error is None:
            who, where = self._membership.describe(self._membership.rank), f"round {self._round}"
            where = where if self._round >= 0 else "outside of rounds"
            self._own_error = ResourceError(f"this process, {who}, cannot continue in {where}: {why}; {advice}")
            self._descriptors.release()
            print(f"parablock: {self._own_error}", file=sys.stderr, flush=True)

    def _end_process(self, error: ParaBlockError) -> None:
        print(
            f"parablock: {type(error).__name__}: {error}; the training thread has not come back for "
            f"{self._last_resort_s:g} s since then, so this process ends here",
            file=sys.stderr,
            flush=True,
        )
        os._exit(1)
