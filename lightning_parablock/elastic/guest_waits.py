"""What a guest waits for until it is a member: the limits, what it says meanwhile, and what it advises at the end."""

from __future__ import annotations

import math
from dataclasses import replace

from lightning_parablock.elastic.seat import Seat
from lightning_parablock.errors import PeerTimeoutError
from lightning_parablock.system.limited_wait import LATE, LimitedWait

_ON_ITS_WAY = replace(LATE, line="parablock: {what}; {waited_s:.0f} s so far")
_ADMISSION = replace(LATE, line="parablock: {what}, and has waited {waited_s:.0f} s of at most {limit_s:g} s")
_TOO_SLOW = "the run changes blocks faster than this link brings them"
_DOUBT_S = 60.0
_SPARE_ROUNDS = 2
"""A guest becomes ready in the middle of a round, and the members notice when the next one has begun."""


class GuestWaits:
    """The waits of one guest.

    Args:
        seat: State of this site.

    Attributes:
        is_ready: Whether it may be admitted: no block that was here was more than one round old.
    """

    def __init__(self, seat: Seat) -> None:
        options = seat.options
        self._seat, self.is_ready, self._is_answered = seat, False, False
        self._answer = LimitedWait(options.rejoin_timeout_s, reports=LATE)
        self._way = LimitedWait(math.inf, reports=_ON_ITS_WAY)
        self._closer = LimitedWait(options.straggler_timeout_s)
        self._here = self._most = self._n_blocks = 0
        self._admission = LimitedWait(math.inf)

    def note_close(self, here: int, n_blocks: int) -> None:
        """A member has said which exchanges are the newest, and how many blocks are here, at most one round old."""
        self._here, self._n_blocks, self._is_answered = here, n_blocks, True
        if here > self._most:
            self._most = here
            self._closer.renew()

    def note_given(self) -> None:
        """A member has given all that was asked for."""
        self._answer = LimitedWait(self._answer.limit_s, reports=LATE)
        if self._here == self._n_blocks and not self.is_ready:
            options = self._seat.options
            limit_s = (options.admit_every_rounds + _SPARE_ROUNDS) * options.straggler_timeout_s
            self.is_ready, self._admission = True, LimitedWait(limit_s, reports=_ADMISSION)

    def note_failure(self, error: Exception) -> None:
        """No member has given anything this time.

        Raises:
            PeerTimeoutError: none has for ``rejoin_timeout_s``.
        """
        self._is_answered = False
        if self._answer.is_over:
            raise PeerTimeoutError(
                f"no member has sent the model for rejoin_timeout_s={self._answer.limit_s:g} s ({error}): has the run "
                "ended? are the ports of its sites open?"
            ) from error
        self._answer.report(lambda: f"no member sends the model ({error})")

    def look(self) -> None:
        """To be called again and again, also during a transfer.

        Raises:
            PeerTimeoutError: the guest comes no closer to the members, or they do not admit it.
        """
        self._seat.check()
        if self.is_ready:
            self._look_for_admission()
        elif self._is_answered:
            self._look_for_blocks()

    def _look_for_blocks(self) -> None:
        if self._closer.is_over:
            raise PeerTimeoutError(
                f"{self._so_far()}, and no more for straggler_timeout_s={self._closer.limit_s:g} s: {_TOO_SLOW}; give "
                "the site a faster link, or the run more local_steps"
            )
        since_s = self._closer.waited_s
        doubt = f", and no more for {since_s:.0f} s: {_TOO_SLOW}, if that continues" if since_s > _DOUBT_S else ""
        self._way.report(lambda: self._so_far() + doubt)

    def _so_far(self) -> str:
        site = self._seat.options.site
        return f"site {site}: {self._here} of {self._n_blocks} blocks are here, at most one round old, as all must be"

    def _look_for_admission(self) -> None:
        options = self._seat.options
        ready = f"site {options.site} is ready to be admitted (admit_every_rounds={options.admit_every_rounds})"
        if self._admission.is_over:
            raise PeerTimeoutError(
                f"{ready}, and the members have not admitted it within {self._admission.limit_s:g} s; their logs say "
                "why: a regroup with it has failed, or the lighthouse is away"
            )
        self._admission.report(lambda: ready)
