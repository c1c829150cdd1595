"""When exchanges fall due, on the common clock of optimizer steps: round t takes steps tK+1 to (t+1)K."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Delay:
    """Which round's commits are merged when; rounds fall due in their order, whatever the delay of each.

    The exchange of a round below ``warmup_rounds`` is due at the end of its round, that of any other one
    ``rounds`` K + ``rest_steps`` optimizer steps later.

    Attributes:
        rounds: q of delay_steps = qK + r.
        rest_steps: r, from 0 to K - 1.
        warmup_rounds: How many rounds, from round 0 on, have no delay.
    """

    rounds: int
    rest_steps: int
    warmup_rounds: int = 0

    def is_none_in(self, round_index: int) -> bool:
        """Whether the round's exchange is waited for before the next round begins."""
        return round_index < self.warmup_rounds or not (self.rounds or self.rest_steps)

    def due_in_turns_of(self, round_index: int) -> int:
        """The round that falls due inside the turns of a round where r > 0, unless it had no delay."""
        return round_index - 1 - self.rounds

    def newest_due_at_start(self, round_index: int) -> int:
        """The newest round whose commits are merged before a round begins; negative if there is none."""
        delayed = self.due_in_turns_of(round_index) - (1 if self.rest_steps else 0)
        return max(delayed, min(round_index, self.warmup_rounds) - 1)

    def newest_merged_at_submission(self, round_index: int) -> int:
        """The newest round whose commits are merged when a round is submitted; negative if there is none."""
        return min(self.newest_due_at_start(round_index + 1), round_index - 1)
