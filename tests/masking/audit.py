"""What servers can learn from all that they received in a history: sums that share contributions, and statistics.

Every message is cut into pieces of 32 bytes, and every piece is compared with every other one of the same history:
pieces of one message, of one exchange, of other rounds, of other sessions. Three things must never be found:

- A contribution in two different opened sums (:attr:`Findings.shared`).
- A pair whose difference is no larger, at every place, than that of two contributions can be (:attr:`Findings.bare`):
  it is masked by the same bytes. Bytes are compared as numbers modulo 256, whatever the width of the values is; where
  a carry makes another byte of it, that of wider values is found by the statistics below. Two independent pieces with
  contributions of at most 3 look like that with probability (15 / 256)^32 < 10^-39.
- Bytes of pieces, or of differences, that are not uniform. Their counts, for each kind of pair over all histories, go
  into Pearson's chi-square with 255 degrees of freedom. The differences of one history are not independent of each
  other, but pairwise independent, so the counts have the variances and covariances of independent ones; over hundreds
  of histories they are normal. A chi-square above :data:`THRESHOLD` then has a probability below 10^-9: with the seed
  fixed the test always gives the same result, and for another seed it would pass just as well.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from tests.masking.histories import LARGEST, PIECE_BYTES, History, Message

THRESHOLD = 400.0
"""255 + 6.4 standard deviations of 22.6."""
FEWEST_BYTES = 256 * 20
"""Fewer bytes than this of a kind have no chi-square distribution yet, and are not judged."""
KINDS = (
    "single pieces",
    "pieces of one message",
    "lanes of one contribution",
    "sites of one exchange",
    "exchanges of one session",
    "one contribution in two sessions",
    "other sessions",
)
_SINGLE, _MESSAGE, _LANES, _EXCHANGE, _SESSION, _REPEATED, _OTHER = range(len(KINDS))


@dataclass
class Findings:
    """Over all histories that were added.

    Attributes:
        histories: How many they are.
        sums: Opened sums.
        shared: Contributions that are part of two different opened sums.
        bare: Pairs of pieces under the same mask.
        counts: Bytes by kind and value.
    """

    histories: int = 0
    sums: int = 0
    shared: int = 0
    bare: int = 0
    counts: NDArray[np.int64] = field(default_factory=lambda: np.zeros((len(KINDS), 256), np.int64))

    def add(self, history: History) -> None:
        """Look at all that the servers of a history received."""
        self.histories += 1
        self.sums += len({opened for sums in history.sums.values() for opened in sums})
        self.shared += sum(len(sums) > 1 for sums in history.sums.values())
        if history.messages:
            self._compare(history.messages)

    def chi_squares(self) -> dict[str, float]:
        """Pearson's statistic by kind, where there is enough of it."""
        totals = self.counts.sum(1)
        expected = totals[:, None] / 256
        statistics = ((self.counts - expected) ** 2 / np.maximum(expected, 1)).sum(1)
        return {
            kind: float(value)
            for kind, total, value in zip(KINDS, totals, statistics, strict=True)
            if total >= FEWEST_BYTES
        }

    def _compare(self, messages: list[Message]) -> None:
        pieces, owners = _pieces(messages)
        self._count(pieces, np.full(len(pieces), _SINGLE))
        one, other = np.triu_indices(len(pieces), 1)
        differences = pieces[one] - pieces[other]
        self._count(differences, _kinds(messages, owners[one], owners[other]))
        size = 2 * LARGEST + 1  # one more for a carry
        self.bare += int((differences + size <= 2 * size).all(1).sum())  # modulo 256

    def _count(self, parts: NDArray[np.uint8], kinds: NDArray[np.int64]) -> None:
        places = kinds[:, None] * 256 + parts
        self.counts += np.bincount(places.ravel(), minlength=self.counts.size).reshape(self.counts.shape)


def _pieces(messages: list[Message]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Bytes of all pieces, shape (n, 32), and the number of each one's message."""
    data = [np.frombuffer(message.values.tobytes(), np.uint8).reshape(-1, PIECE_BYTES) for message in messages]
    return np.concatenate(data), np.repeat(np.arange(len(messages)), [len(part) for part in data])


def _kinds(messages: list[Message], one: NDArray[np.int64], other: NDArray[np.int64]) -> NDArray[np.int64]:
    """How the messages of each pair are related."""

    def codes(keys: list[object]) -> NDArray[np.int64]:
        numbers: dict[object, int] = {}
        return np.array([numbers.setdefault(key, len(numbers)) for key in keys])

    def equal(keys: list[object]) -> NDArray[np.bool_]:
        code = codes(keys)
        return code[one] == code[other]

    contribution = equal([message.contribution for message in messages])
    session = equal([message.session for message in messages])
    exchange = equal([message.contribution[3:] for message in messages])
    lane = equal([message.lane for message in messages])
    return np.select(
        [contribution & session & lane, contribution & session, session & exchange, session, contribution],
        [_MESSAGE, _LANES, _EXCHANGE, _SESSION, _REPEATED],
        _OTHER,
    )
