"""Rounds on their way: what the clients of a rank did in them, and the exchanges that carry it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_parablock.records import RoundRecord
from lightning_parablock.schedule import Work
from lightning_parablock.transport.base import Exchange, Upload


@dataclass
class Turn:
    """One client's part of a round: when it computed, and how long it stood still for the round's exchange."""

    start_s: float
    block: int
    steps: int = 0
    end_s: float = 0.0
    stood_still_s: float = 0.0
    exposed_s: float = 0.0
    wait_peer_s: float = 0.0
    samples: int = 0
    drift: float | None = None


@dataclass
class Flight:
    """A round that is submitted and not merged by everybody yet.

    Attributes:
        work: Its blocks with their clients.
        uploads: Of this rank's clients, by client.
        turns: Of this rank's clients, by client; where none of them trained, an empty one of the first.
        exchanges: By block.
        has_landed: Whether the commits have been taken from the exchanges.
    """

    work: Work
    uploads: dict[int, Upload]
    turns: dict[int, Turn]
    exchanges: dict[int, Exchange] = field(default_factory=dict[int, Exchange])
    has_landed: bool = False

    def note_wait(self, block: int, from_s: float, until_s: float) -> None:
        """This rank stood still for the exchange of a block; its first client's record says so."""
        turn, ready_s = self.turns[min(self.turns)], self.exchanges[block].facts.ready_s
        turn.wait_peer_s += max(0.0, min(until_s, ready_s) - from_s)
        turn.exposed_s += max(0.0, until_s - max(from_s, ready_s))

    def record_of(self, round_index: int, client: int, block_names: list[str]) -> RoundRecord:
        """The record of one of the turns, once the commits are here."""
        turn = self.turns[client]
        facts = self.exchanges[turn.block].facts
        # Messages are the rank's: where it hosts several clients, its first one's record carries them all.
        carried = [exchange.facts for exchange in self.exchanges.values()] if client == min(self.turns) else []
        return RoundRecord(
            round=round_index,
            block=block_names[turn.block],
            client=client,
            steps=turn.steps,
            start_s=turn.start_s,
            end_s=turn.end_s,
            compute_s=turn.end_s - turn.start_s - turn.stood_still_s,
            exchange_s=facts.end_s - facts.ready_s,
            exposed_s=turn.exposed_s,
            wait_peer_s=turn.wait_peer_s,
            upload_bytes=sum(f.upload_bytes for f in carried),
            download_bytes=sum(f.download_bytes for f in carried),
            exchange_start_s=facts.start_s,
            exchange_ready_s=facts.ready_s,
            exchange_end_s=facts.end_s,
            samples=turn.samples,
            drift=turn.drift,
        )
