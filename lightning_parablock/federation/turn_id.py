"""Which turn of a run is under way, as the rounds tell it to the data loaders."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TurnId:
    """One turn of a rank.

    Attributes:
        round: Number of its round.
        turn: Its number in the round.
        client: The client that trains in it; None in an idle turn.
    """

    round: int
    turn: int
    client: int | None
