"""The options that say how many clients there are and which of them train in which round."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from lightning_parablock.checks import require, whole
from lightning_parablock.errors import ConfigurationError
from lightning_parablock.options import OptionGroup, keeps, option, record

Availability = tuple[tuple[int, ...], ...]
"""For each round the clients that are available; after the last entry the trace repeats. Empty: all clients, always."""

CohortSampling = Literal["uniform", "size", "rotation"]


def read_availability(path: str) -> Availability:
    """Read which clients are available: line t of a text file has the numbers of the clients of round t.

    Raises:
        ConfigurationError: there is no such file, a line is empty, or a word of it is not a client's number.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"availability: {path} cannot be read: {error}") from error
    trace: list[tuple[int, ...]] = []
    for number, line in enumerate(lines, start=1):
        words = line.split()
        if not words or not all(word.isascii() and word.isdigit() for word in words):
            raise ConfigurationError(
                f"availability: line {number} of {path} must have the numbers of the clients that can be reached in "
                f"round {number - 1}, at least one, between spaces; got {line[:60]!r}"
            )
        trace.append(tuple(sorted(set(map(int, words)))))
    if not trace:
        raise ConfigurationError(f"availability: {path} is empty; it needs one line per round")
    return tuple(trace)


@keeps(tuple)
def _trace(path: str | None) -> Availability:
    return () if path is None else read_availability(path)


@record
class ClientOptions(OptionGroup):
    """Clients and cohorts."""

    clients: int | None = option(
        default=None,
        check=whole(1, "in all", or_none=True),
        help="Total number of clients; None means one per rank. Each rank hosts an equal share of them and trains "
        "those of the round's cohort one after another. Every client has its own data, random state, buffers and "
        "error feedback. If all ranks have the same training set, it is split into one shard per client; a data "
        "module or a module with a method client_dataloader(client) is asked for each client's loader instead.",
    )
    cohort: int | None = option(
        default=None,
        check=whole(1, "clients per round", or_none=True),
        help="Number of clients that train in a round; None means all that are available.",
    )
    cohort_sampling: CohortSampling = option(
        default="uniform",
        help='How a cohort is drawn: "uniform", "size" or "rotation". "size" draws in proportion to the '
        'clients\' samples; "rotation" takes them in turn, as in a relay.',
    )
    availability: Availability = option(
        default=None,
        converter=_trace,
        help="Text file that says which clients are available; None means all, always. Line t lists the numbers of "
        "the clients of round t; after its last line the file starts over.",
    )
    max_rounds: int | None = option(
        default=None,
        check=whole(1, "rounds of the run", or_none=True),
        help="Number of rounds after which training ends, unless something else ends it earlier; None means no limit.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.cohort is not None or self.cohort_sampling == "uniform",
            f"cohort_sampling={self.cohort_sampling!r} without cohort, the number of clients that train in a round: "
            "without it all of them do",
        )
        require(
            self.cohort is None or self.clients is None or self.cohort <= self.clients,
            f"cohort={self.cohort} clients per round, but the run has clients={self.clients}",
        )

    @property
    def draws_cohorts(self) -> bool:
        """Whether there may be rounds in which not all clients train."""
        return self.cohort is not None or bool(self.availability)

    @property
    def takes_turns(self) -> bool:
        """Whether a rank may host several clients, or some clients do not train in every round."""
        return self.clients is not None or self.draws_cohorts
