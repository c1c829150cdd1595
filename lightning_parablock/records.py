"""What is known of a finished round: the raw material of metrics, timelines and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class OfClientAndRound(Protocol):
    """What one client did in one round."""

    @property
    def client(self) -> int:
        """Number of the client."""
        ...

    @property
    def round(self) -> int:
        """Number of the round."""
        ...


T = TypeVar("T", bound=OfClientAndRound)


def first_of_each_round(records: Iterable[T]) -> dict[int, T]:
    """By round the one of its first client, whatever order they come in."""
    first: dict[int, T] = {}
    for record in records:
        if record.round not in first or record.client < first[record.round].client:
            first[record.round] = record
    return first


@dataclass(frozen=True)
class RoundRecord:
    """One client's round, complete once its exchange is merged. Times are seconds of ``time.time()``.

    Where a rank hosts several clients of the round, the record of the first one carries ``exchange_s``, ``exposed_s``,
    ``wait_peer_s`` and the bytes of the rank, and they are 0 in those of the others: sums count each once.

    Attributes:
        round: Number of the round, from 0.
        block: Name of the block it trained.
        client: Number of the client.
        steps: Local steps of the round (fewer than ``local_steps`` only in the last).
        start_s: When the round began on this client.
        end_s: When its last local step was over; what it waited for after that is in the fields below.
        compute_s: Spent in local steps and whatever the trainer does between them.
        exchange_s: From the moment every client had submitted its delta until the commit had arrived; of all blocks,
            where clients train different ones in a round.
        exposed_s: The part of ``exchange_s`` during which this client stood still and waited.
        wait_peer_s: Time this client stood still because a slower client had not submitted yet.
        upload_bytes: Sent by this client's rank for the exchange, message headers included.
        download_bytes: Received by this client's rank for the exchange, message headers included.
        exchange_start_s: When this client submitted its delta.
        exchange_ready_s: When every client had submitted.
        exchange_end_s: When the commit had arrived.
        samples: On how many it trained; 0 where it took no part.
        nonfinite: Whether its delta contained NaN or infinity, so that it took no part (``nonfinite_delta="skip"``).
        drift: Norm of its delta less the mean delta, over the mean delta's norm, dimensionless; None where it took no
            part, or where the commit does not tell the mean: with a server optimizer other than SGD, a lossy
            compression, or parameters that are not float32.
    """

    round: int
    block: str
    client: int
    steps: int
    start_s: float
    end_s: float
    compute_s: float
    exchange_s: float
    exposed_s: float
    wait_peer_s: float
    upload_bytes: int
    download_bytes: int
    exchange_start_s: float
    exchange_ready_s: float
    exchange_end_s: float
    samples: int = 0
    drift: float | None = None
    nonfinite: bool = False
