"""Rounds in flight: what the clients of a rank did in them, and the exchanges that carry it."""

from __future__ import annotations

from dataclasses import dataclass, field

from lightning_parablock.federation.schedule import Work
from lightning_parablock.records import RoundRecord
from lightning_parablock.server.uploads import Upload
from lightning_parablock.transport.base import Exchange


@dataclass
class TurnFacts:
    """What a client did in its turn: when it computed, and how long it waited meanwhile for an earlier exchange."""

    start_s: float
    block: int
    steps: int = 0
    end_s: float = 0.0
    stood_still_s: float = 0.0
    samples: int = 0
    drift: float | None = None
    nonfinite: bool = False


@dataclass
class Flight:
    """A round that is submitted and not yet merged by all clients.

    Attributes:
        work: Its blocks with their clients.
        uploads: Uploads of this rank's clients, by client.
        turn_facts: What this rank's clients did, by client; an empty entry for the first where none of them trained.
        exchanges: The round's exchanges, by block.
        waits_s: When this rank's training thread waited for one of them: start and end, ``time.time()``.
        has_landed: Whether the commits have been taken from the exchanges.
    """

    work: Work
    uploads: dict[int, Upload]
    turn_facts: dict[int, TurnFacts]
    exchanges: dict[int, Exchange] = field(default_factory=dict[int, Exchange])
    waits_s: list[tuple[float, float]] = field(default_factory=list[tuple[float, float]])
    has_landed: bool = False

    @property
    def ready_s(self) -> float:
        """When every client had submitted, to all exchanges of the round."""
        return max(exchange.facts.ready_s for exchange in self.exchanges.values())

    @property
    def end_s(self) -> float:
        """When the last commit of the round had arrived."""
        return max(exchange.facts.end_s for exchange in self.exchanges.values())

    @property
    def wait_peer_s(self) -> float:
        """How long this rank waited before the exchanges were ready."""
        return sum(max(0.0, min(until_s, self.ready_s) - from_s) for from_s, until_s in self.waits_s)

    @property
    def exposed_s(self) -> float:
        """How long it waited while they ran; the time until the waiting thread has woken up does not count."""
        return sum(max(0.0, min(until_s, self.end_s) - max(from_s, self.ready_s)) for from_s, until_s in self.waits_s)

    def record_of(self, round_index: int, client: int, block_names: list[str]) -> RoundRecord:
        """The record of a client's turn, once the commits are here."""
        turn = self.turn_facts[client]
        facts = self.exchanges[turn.block].facts
        # Exchanges and waits belong to the rank: of several clients the first one's record carries them all.
        is_first = client == min(self.turn_facts)
        carried = [exchange.facts for exchange in self.exchanges.values()] if is_first else []
        return RoundRecord(
            round=round_index,
            block=block_names[turn.block],
            client=client,
            steps=turn.steps,
            start_s=turn.start_s,
            end_s=turn.end_s,
            compute_s=turn.end_s - turn.start_s - turn.stood_still_s,
            exchange_s=self.end_s - self.ready_s if is_first else 0.0,
            exposed_s=self.exposed_s if is_first else 0.0,
            wait_peer_s=self.wait_peer_s if is_first else 0.0,
            upload_bytes=sum(f.upload_bytes for f in carried),
            download_bytes=sum(f.download_bytes for f in carried),
            exchange_start_s=facts.start_s,
            exchange_ready_s=self.ready_s,
            exchange_end_s=self.end_s,
            samples=turn.samples,
            drift=turn.drift,
            nonfinite=turn.nonfinite,
            dropped=facts.is_dropped,
        )
