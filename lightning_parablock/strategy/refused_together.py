"""What one site refuses, all sites refuse: each learns the reason, and none takes that site for lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.federation.collectives import Collectives

T = TypeVar("T")


def refused_together(ranks: Collectives, work: Callable[[], T]) -> T:
    """Do each rank's part, which may refuse to begin the run, and return this rank's result; collective.

    Args:
        ranks: The ranks.
        work: This rank's part; not collective.

    Raises:
        ParaBlockError: what this rank's part has raised.
        ConfigurationError: another rank's part has raised something; names the rank and says what.
    """
    results: list[T] = []
    refusal: ParaBlockError | None = None
    try:
        results.append(work())
    except ParaBlockError as error:
        refusal = error
    reasons = ranks.gather_objects("" if refusal is None else str(refusal))
    if refusal is not None:
        raise refusal
    said = [f"{ranks.describe(rank)} refuses to begin: {reason}" for rank, reason in enumerate(reasons) if reason]
    if said:
        raise ConfigurationError("; ".join(said))
    return results[0]
