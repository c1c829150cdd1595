"""Records of finished rounds: the raw data of metrics, timelines and benchmarks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol, TypeVar


class OfClientAndRound(Protocol):
    """A record of one client and one round."""

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
    """The record of each round's first client, by round, for records in any order."""
    first: dict[int, T] = {}
    for record in records:
        if record.round not in first or record.client < first[record.round].client:
            first[record.round] = record
    return first


@dataclass(frozen=True)
class RoundRecord:
    """One client's round, complete once its exchange is merged. Times are seconds of ``time.time()``.

    If a rank hosts several clients of the round, the record of the first one has the rank's ``exchange_s``,
    ``exposed_s``, ``wait_peer_s`` and bytes, and the others have 0: sums count each of them once.

    Attributes:
        round: Number of the round, from 0.
        block: Name of the block it trained.
        client: Number of the client.
        steps: Number of local steps of the round (fewer than ``local_steps`` only in the last round).
        start_s: Time at which the round began on this client.
        end_s: Time at which its last local step was over; later waits are in the fields below.
        compute_s: Time spent in local steps and in the trainer between them.
        exchange_s: Time from the moment every client had submitted its delta until the commit had arrived; of all
            blocks, if clients train different ones in a round.
        exposed_s: Part of ``exchange_s`` in which this client was idle.
        wait_peer_s: Time in which this client was idle because a slower client had not submitted yet.
        upload_bytes: Bytes sent by this client's rank for the exchange, message headers included.
        download_bytes: Bytes received by this client's rank for the exchange, message headers included.
        exchange_start_s: Time at which this client submitted its delta.
        exchange_ready_s: Time at which every client had submitted.
        exchange_end_s: Time at which the commit had arrived.
        samples: Number of samples it trained on; 0 if it took no part.
        nonfinite: Whether its delta contained NaN or infinity, so that it took no part (``nonfinite_delta="skip"``).
        dropped: Whether its exchange was under way when the members of an elastic run with secure sums changed, so that
            W is as it was and the delta counts for nothing.
        drift: Norm of the difference between its delta and the mean delta, over the mean delta's norm, dimensionless;
            None if it took no part, or if the commit does not determine the mean: with a server optimizer other than
            SGD, a lossy compression, secure sums, or parameters that are not float32.
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
    dropped: bool = False
