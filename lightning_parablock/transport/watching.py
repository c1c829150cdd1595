"""What a transport needs to know about its peers, whatever watches them."""

from __future__ import annotations

from typing import Protocol


class PeersProgress(Protocol):
    """How far the other ranks are."""

    def behind(self, round_index: int) -> str:
        """Which clients have not submitted the round, in words; empty if all have."""
        ...

    def check_takes_part(self, round_index: int) -> None:
        """Raise a PeerError if a rank has said that it does not take part in the round."""
        ...


class Watching(Protocol):
    """Who is alive, and why an exchange has failed."""

    @property
    def peers(self) -> PeersProgress:
        """How far the other ranks are."""
        ...

    def check(self) -> None:
        """Raise the PeerError that is already known, if any, without waiting."""
        ...

    def note_step(self, round_index: int) -> None:
        """Note a local step of this rank."""
        ...

    def note_submitted(self, round_index: int) -> None:
        """Note that this rank has submitted a round."""
        ...

    def announce_end(self, rounds: int) -> None:
        """Tell the others that this rank takes part in ``rounds`` rounds and no more."""
        ...

    def explain(self, cause: Exception, rank: int) -> Exception:
        """The error to raise for a failed transfer to or from a rank."""
        ...

    def cause_of(self, error: Exception) -> Exception:
        """The error that has caused this one, where another one is known to be the first."""
        ...
