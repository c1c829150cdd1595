"""Which options exchanges of factors exclude: refused by name when the settings are made."""

from __future__ import annotations

from lightning_parablock.checks import require
from lightning_parablock.codecs.compression import Compression, LowRank


def refuse_with_low_rank(compression: Compression, *, is_elastic: bool) -> None:
    """Refuse a membership that changes.

    Arguments are the options of these names.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    require(
        not isinstance(compression, LowRank) or not is_elastic,
        "lighthouse with compression='low_rank' is not supported: a site that joins would not know what the run's "
        "matrices are projected on; use another compression such as 'sparse'",
    )
