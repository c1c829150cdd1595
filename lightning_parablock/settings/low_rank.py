"""Which options exchanges of factors exclude: refused by name when the settings are made."""

from __future__ import annotations

from lightning_parablock.checks import require
from lightning_parablock.codecs.compression import Compression, LowRank
from lightning_parablock.server.optimizers import ServerOptimizer, ServerSGD

_WITH = "with compression='low_rank'"


def refuse_with_low_rank(compression: Compression, *, server_optimizer: ServerOptimizer, is_elastic: bool) -> None:
    """Refuse what needs a server that knows more of a block than the clients.

    Arguments are the options of these names.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    if not isinstance(compression, LowRank):
        return
    require(
        isinstance(server_optimizer, ServerSGD),
        f"server_optimizer={type(server_optimizer).__name__} {_WITH} is not supported: every rank computes the new "
        "values from the mean of the factors, and other optimizers have a state at the server alone; use 'sgd', or "
        "another compression such as 'sparse'",
    )
    require(
        not is_elastic,
        f"lighthouse {_WITH} is not supported: a site that joins would not know what the run's matrices are "
        "projected on; use another compression such as 'sparse'",
    )
