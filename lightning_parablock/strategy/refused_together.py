"""What one site refuses, all sites refuse: each learns the reason, and none takes that site for lost."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from lightning_parablock.errors import ConfigurationError, ParaBlockError
from lightning_parablock.federation.collectives import Collectives

T = TypeVar("T")


def refused_together(ranks: Collectives, work: Callable[[], T], private: str = "") -> T:
    """Do each rank's part, which may refuse to begin the run, and return this rank's result; collective.

    Args:
        ranks: The ranks.
        work: This rank's part; not collective.
        private: Of what the reasons speak that are not for the others, who are told this instead. Empty for the reason.

    Raises:
        ParaBlockError: what this rank's part has raised.
        ConfigurationError: another rank's part has raised something; names the rank and says what, or where to see it.
    """
    results: list[T] = []
    refusal: ParaBlockError | None = None
    try:
        results.append(work())
    except ParaBlockError as error:
        refusal = error
    reason = f"{private} cannot be used, and the message there says why" if private else str(refusal)
    reasons = ranks.gather_objects("" if refusal is None else reason)
    if refusal is not None:
        raise refusal
    said = [f"{ranks.describe(rank)} refuses to begin: {why}" for rank, why in enumerate(reasons) if why]
    if said:
        raise ConfigurationError("; ".join(said))
    return results[0]
