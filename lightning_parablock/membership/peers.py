"""A rank's view of its peers: when they were last heard, how far they have come, and which was lost first."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass, field

from lightning_parablock.errors import PeerError, PeerLostError, PeerTimeoutError, ProtocolError
from lightning_parablock.membership.awake import Awake, now_s
from lightning_parablock.membership.membership import Membership
from lightning_parablock.membership.signs import Call, Progress, Sign, Word

_SETTLING_S = 10.0
_ALONE = (
    ", by itself, which the other clients cannot see: where trainer.should_stop is set or batches are skipped, all "
    "clients must decide alike (EarlyStopping does; otherwise call trainer.strategy.reduce_boolean_decision at the "
    "same batch)"
)


@dataclass
class _Peer:
    """State of one peer; times are those of :func:`awake.now_s`."""

    seen_s: float
    has_left: bool = False
    lost_s: float | None = None
    lost_why: str = ""
    progress: Progress = field(default_factory=Progress)
    calls: dict[int, Word] = field(default_factory=dict[int, Word])  # announced, and not yet entered by this rank
    last_call: str = ""

    @property
    def is_gone(self) -> bool:
        return self.has_left or self.lost_s is not None


class Peers:
    """This rank's view of the other ranks. All methods may be called from any thread.

    Args:
        membership: The ranks.
        heartbeat_s: Seconds between two signs of life.
        silence_limit_s: Seconds without one after which a peer counts as frozen or cut off.

    Attributes:
        changed: Condition that is notified whenever the state of a peer changes.
    """

    def __init__(self, membership: Membership, heartbeat_s: float, silence_limit_s: float) -> None:
        self.changed = threading.Condition()
        self._members, self._limit_s = membership, silence_limit_s
        self._awake = Awake(heartbeat_s + 0.2)
        self._peers = {rank: _Peer(now_s()) for rank in membership.peers}

    # --- news ---------------------------------------------------------------------------------------------------------

    def hear(self, rank: int, word: Word) -> None:
        """Record a message from a peer."""
        peer = self._peers[rank]
        with self.changed:
            peer.seen_s, peer.progress = now_s(), word.progress
            peer.has_left = peer.has_left or word.sign == Sign.LEAVING
            if word.sign == Sign.ARRIVED:
                peer.calls[word.call.number], peer.last_call = word, word.call.text
            self.changed.notify_all()

    def lose(self, rank: int, why: str) -> None:
        """Record that nothing more will come from a peer."""
        with self.changed:
            self._peers[rank].lost_s, self._peers[rank].lost_why = now_s(), why
            self.changed.notify_all()

    def tick(self) -> None:
        """Detect pauses of this process, which must not be blamed on the others; call it several times per second."""
        with self.changed:
            pause = self._awake.tick()
            if pause is not None:
                is_long = pause.for_s > self._limit_s
                for peer in self._peers.values():
                    peer.seen_s = pause.until_s if is_long else peer.seen_s + pause.for_s

    # --- lost and silent ones -----------------------------------------------------------------------------------------

    def is_gone(self, rank: int) -> bool:
        """Whether nothing more is expected from a peer: it has signed off, or was lost."""
        return self._peers[rank].is_gone

    def has_lost(self, rank: int) -> bool:
        """Whether a rank has failed, ended early or been silent for too long; False for this rank itself."""
        peer = self._peers.get(rank)
        self.tick()
        return peer is not None and (peer.lost_s is not None or now_s() - peer.seen_s > self._limit_s)

    def first_lost(self) -> int | None:
        """The peer that was lost first: when one fails, the others soon follow."""
        lost = [(peer.lost_s, rank) for rank, peer in self._peers.items() if peer.lost_s is not None]
        return min(lost)[1] if lost else None

    def remaining(self) -> list[int]:
        """The peers that have neither signed off nor been lost."""
        return [rank for rank, peer in self._peers.items() if not peer.is_gone]

    def known(self) -> PeerError | None:
        """The error to raise for a peer that was lost or has been silent for too long, if there is one."""
        self.tick()
        lost = self.first_lost()
        if lost is not None:
            return self._loss_of(lost)
        now = now_s()
        silent = [(peer.seen_s, rank) for rank, peer in self._peers.items() if not peer.is_gone]
        if not silent or now - min(silent)[0] <= self._limit_s:
            return None
        seen_s, rank = min(silent)
        return PeerTimeoutError(
            f"{self._members.describe(rank)} has given no sign of life for {now - seen_s:.0f} s (limit "
            f"exchange_timeout_s={self._limit_s:g}): its process is frozen or its link is cut"
        )

    def _loss_of(self, rank: int) -> PeerError:
        peer = self._peers[rank]
        what = f"{self._members.describe(rank)} {peer.lost_why}"
        assert peer.lost_s is not None
        pause = self._awake.pause_around(peer.lost_s, self._limit_s / 2, max(self._limit_s, _SETTLING_S))
        if pause is None:
            return PeerLostError(what)
        return PeerTimeoutError(
            f"this process, {self._members.describe(self._members.rank)}, did not run for {pause.for_s:.0f} s (it was "
            f"stopped, or its machine was asleep; limit exchange_timeout_s={self._limit_s:g}); meanwhile {what}"
        )

    # --- how far they are ---------------------------------------------------------------------------------------------

    def check_takes_part(self, round_index: int) -> None:
        """Raise if a peer is known to have ended its training before a round.

        Raises:
            PeerError: a peer has ended its training before the round; the message names it.
        """
        for rank, peer in self._peers.items():
            if peer.progress.has_ended and round_index >= peer.progress.rounds:
                raise self._ended_alone(rank, peer.progress.rounds)

    def behind(self, round_index: int) -> str:
        """The clients that have not submitted a round, and what they do instead; empty if all have."""
        late = [rank for rank, peer in self._peers.items() if peer.progress.submitted < round_index]
        return "; ".join(
            f"{self._members.describe(r)} has not submitted round {round_index} ({self._where(r)})" for r in late
        )

    def _where(self, rank: int) -> str:
        peer = self._peers[rank]
        if peer.has_left:
            return "it has left the run"
        where = f"its last collective was {peer.last_call!r}" if peer.last_call else "it has entered no collective"
        if peer.progress.round >= 0:
            where = (
                f"it trains in round {peer.progress.round}, its last step ended {peer.progress.idle_ms / 1e3:.0f} s ago"
            )
        return f"{where}; last heard {max(0.0, now_s() - peer.seen_s):.0f} s ago"

    # --- collectives --------------------------------------------------------------------------------------------------

    def missing(self, call: Call) -> list[int]:
        """The peers that have not yet announced that they enter a collective."""
        return [rank for rank, peer in self._peers.items() if call.number not in peer.calls]

    def absent(self, call: Call) -> str:
        """The peers that have not yet announced a collective, in words."""
        return "; ".join(
            f"{self._members.describe(r)} has not come to it ({self._where(r)})" for r in self.missing(call)
        )

    def forget(self, call: Call) -> None:
        """Drop the announcements of a collective that every rank has entered."""
        for peer in self._peers.values():
            peer.calls.pop(call.number, None)

    def check_agree(self, call: Call, own: Progress) -> None:
        """Raise if a peer enters another collective in this one's place, or has ended its training.

        Args:
            call: Collective that this rank is about to enter.
            own: Progress of this rank.

        Raises:
            PeerError: a client has ended its training by itself, or has continued training without this collective.
            ProtocolError: the ranks are in different collectives; the message lists which rank is in which.
        """
        with self.changed:
            self._check_ended(call, own)
            self._check_passed(call, own)
            calls = {r: peer.calls[call.number].call for r, peer in self._peers.items() if call.number in peer.calls}
        calls[self._members.rank] = call
        if len({said.digest for said in calls.values()}) > 1:
            raise ProtocolError(
                f"the clients are in different collective operations: {self._listed(calls)}; all clients must call the "
                "same ones in the same order, with tensors of the same shapes and types: look for code that runs on "
                "some clients only"
            )

    def _check_ended(self, call: Call, own: Progress) -> None:
        for rank, peer in self._peers.items():
            word = peer.calls.get(call.number)
            progress = peer.progress if word is None else word.progress
            if progress.has_ended and not own.has_ended:
                raise self._ended_alone(rank, progress.rounds)
            if own.has_ended and word is not None and not progress.has_ended:
                raise self._ended_alone(self._members.rank, own.rounds)

    def _check_passed(self, call: Call, own: Progress) -> None:
        # A rank that has ended a round which this one is still in has passed all collectives before the round's end.
        for rank in self.missing(call):
            if own.round >= 0 and own.submitted < self._peers[rank].progress.submitted:
                raise PeerError(
                    f"{self._members.describe(self._members.rank)} is alone in {call.text!r}: "
                    f"{self._members.describe(rank)} trained on without it; all clients must call it at the same "
                    "batch, as they must trainer.save_checkpoint: look for `if trainer.is_global_zero` around it"
                )

    def _listed(self, calls: dict[int, Call]) -> str:
        ordered: Iterable[tuple[int, Call]] = sorted(calls.items())
        return "; ".join(f"{self._members.describe(rank)} in {call.text!r}" for rank, call in ordered)

    def _ended_alone(self, rank: int, rounds: int) -> PeerError:
        return PeerError(f"{self._members.describe(rank)} ended its training after {rounds} rounds{_ALONE}")
