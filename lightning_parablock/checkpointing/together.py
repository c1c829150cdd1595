"""Work of all ranks on one checkpoint, which succeeds on all of them or fails on all of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_parablock.errors import CheckpointError, ConfigurationError
from lightning_parablock.federation.collectives import Collectives

T = TypeVar("T")


def do_on_all(ranks: Collectives, work: Callable[[], T], verb: str) -> T:
    """Do each rank's part and return this rank's result; collective.

    Args:
        ranks: The ranks.
        work: This rank's part.
        verb: What it does with its part of a checkpoint, for messages.

    Raises:
        CheckpointError: the work failed on a rank; the same error on every rank.
    """
    results: list[T] = []
    problem = None
    try:
        results.append(work())
    except Exception as error:  # whatever it is: the others wait for this rank's part
        kind = "" if isinstance(error, (OSError, ConfigurationError)) else f"{type(error).__name__}: "
        problem = f"{ranks.describe(ranks.global_rank)}: {kind}{error}"
    problems = [found for found in ranks.gather_objects(problem) if found is not None]
    if problems:
        raise CheckpointError(f"a client cannot {verb} its part of a checkpoint: {'; '.join(problems)}")
    return results[0]


def gather_from_all(ranks: Collectives, work: Callable[[], T], verb: str) -> list[T]:
    """The same with the results of all ranks, in rank order."""
    return ranks.gather_objects(do_on_all(ranks, work, verb))
