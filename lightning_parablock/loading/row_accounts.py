"""What becomes of the rows of a client's source: one line per client, logged on its rank and kept in the manifest."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_utilities.core import rank_zero


@dataclass(frozen=True)
class RowAccount:
    """The rows of one client's source, none of which disappears without a word.

    Attributes:
        name: The client in words.
        source_rows: Rows of the source that its rank reads.
        train_rows: Rows that the client trains on.
        sharing: Number of clients among which the source is cut; 1 where all of it is this client's.
        held_out_rows: Rows held out for validation: this client's, or those of all clients that share the source.
        own_held_out_rows: Rows of its part that the client holds out for a validation of its own.
        notes: What is left out beyond that, and why.
    """

    name: str
    source_rows: int
    train_rows: int
    sharing: int = 1
    held_out_rows: int = 0
    own_held_out_rows: int = 0
    notes: tuple[str, ...] = ()

    @property
    def line(self) -> str:
        """The account in one line, such as ``site a: 200 of 200 rows: 190 to train on, 10 held out``."""
        used = self.train_rows + self.own_held_out_rows + (self.held_out_rows if self.sharing == 1 else 0)
        part = f" (one of {self.sharing} parts)" if self.sharing > 1 else ""
        uses = [f"{self.train_rows} to train on"]
        if self.own_held_out_rows:
            uses.append(f"{self.own_held_out_rows} held out for its own validation")
        if self.held_out_rows:
            uses.append(f"{self.held_out_rows} held out" + ("" if self.sharing == 1 else " for all of them"))
        use = f": {', '.join(uses)}" if len(uses) > 1 else ""
        notes = f"; left out: {'; '.join(self.notes)}" if self.notes else ""
        return f"{self.name}: {used} of {self.source_rows} rows{part}{use}{notes}"


def show_here(line: str) -> None:
    """Log a line on this rank, whichever it is, where Lightning logs what it shows on the first one."""
    rank_zero.log.info(line)
