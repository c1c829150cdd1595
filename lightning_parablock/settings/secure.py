"""Which options secure sums exclude: refused by name when the settings are made."""

from __future__ import annotations

from typing import Literal

from lightning_parablock.checks import require
from lightning_parablock.codecs.compression import BF16, Compression, NoCompression
from lightning_parablock.server.aggregations import Aggregation, SecureAggregation

_WITH = "with aggregation='secure'"
NEW_FIT_ALONE = (
    f"{_WITH} a run continues from the state of the same sites alone, since rounds that are repeated with other "
    "contributions show what one site has added: load the weights into the module and start a new fit"
)
"""What to do with a checkpoint without the sites' own states."""


def refuse_with_secure(
    choice: Aggregation,
    compression: Compression | Literal["auto"],
    *,
    weighting: str,
    block_order: str,
    buffers: str,
    cohort_sampling: str,
    missing_client_state: str,
    nonfinite_delta: str,
    own_local_s: float | None,
    min_clients: int | None,
) -> None:
    """Refuse what would show a server, or another site, what one client has done.

    Arguments are the options of these names; ``min_clients`` is None where the membership is fixed.

    Raises:
        ConfigurationError: names the option, and what to do.
    """
    if not isinstance(choice, SecureAggregation):
        return
    said = repr(compression) if isinstance(compression, str) else type(compression).__name__
    require(
        isinstance(compression, NoCompression | BF16),
        f"compression={said} {_WITH} is not supported: deltas are whole numbers of "
        "bytes_per_value bytes, whose sums other codecs cannot carry; use 'none', or 'bf16' for commits",
    )
    require(
        choice.bytes_per_value == 2 or weighting == "uniform",
        f"weighting={weighting!r} {_WITH} needs 2 bytes per value: one byte has too few steps for clients of "
        "different weights; use SecureAggregation(bytes_per_value=2), or weighting='uniform'",
    )
    require(
        block_order != "importance",
        f"block_order='importance' {_WITH} is not supported: every client tells the norms of its gradients; use "
        "'random', with visit_more for blocks that matter more",
    )
    require(
        buffers == "local",
        f"buffers={buffers!r} {_WITH} is not supported: every client's buffers travel as they are; use 'local'",
    )
    require(
        cohort_sampling != "size",
        f"cohort_sampling='size' {_WITH} is not supported: every client tells how many samples it has; use 'uniform' "
        "or 'rotation'",
    )
    require(
        missing_client_state == "error",
        f"missing_client_state={missing_client_state!r} {_WITH} is not supported: rounds that are repeated "
        "with other contributions show what one client has added; use 'error'",
    )
    require(
        nonfinite_delta == "stop",
        f"nonfinite_delta={nonfinite_delta!r} {_WITH} is not supported: a client that is left out makes the sum one of "
        "fewer sites, which shows more of each, and one site may remain; use 'stop'",
    )
    require(
        own_local_s is None,
        f"own_local_s={own_local_s} {_WITH} is not supported: what is trained then depends on the machine's "
        "speed, so that a round could not be repeated to the bit; use own_local_steps",
    )
    if min_clients is not None:
        _refuse_elastic(choice, block_order, min_clients)


def _refuse_elastic(choice: SecureAggregation, block_order: str, min_clients: int) -> None:
    require(
        min_clients >= choice.min_sites,
        f"min_clients={min_clients} with lighthouse and aggregation='secure' is not supported: a sum needs "
        f"{choice.min_sites} sites (min_sites), and with fewer members the run must wait; give {choice.min_sites} or "
        "more",
    )
    require(
        block_order != "cyclic",
        f"block_order='cyclic' with lighthouse {_WITH} is not supported: where sites come and go, the sum of a block "
        "may have too few of them; choose an order in which all sites of a round train one block",
    )


def refuse_idle_clients(choice: Aggregation, lengths: str) -> None:
    """Refuse epochs in which clients continue after others have used up their data.

    Args:
        choice: How deltas become their mean.
        lengths: How many batches each client has, in words.

    Raises:
        ConfigurationError: sums are secure.
    """
    require(
        not isinstance(choice, SecureAggregation),
        f"uneven_clients='go_on' {_WITH} is not supported where the clients have different or unknown numbers of "
        f"batches ({lengths}): at the end of an epoch sums would be of fewer sites, at last of one alone; use "
        "'shorten', or give all clients equally many batches",
    )


def refuse_short_data(choice: Aggregation, who: str, own: int, agreed: int) -> None:
    """Refuse a site that would be idle at the end of each epoch, where sites come and go.

    Args:
        choice: How deltas become their mean.
        who: The site, in words.
        own: Batches of its training loader.
        agreed: Batches of an epoch, on which the founders have agreed.

    Raises:
        ConfigurationError: sums are secure, and the site has fewer batches than an epoch.
    """
    require(
        not isinstance(choice, SecureAggregation) or own >= agreed,
        f"{who} has {own} training batches, and the founders of the run have agreed on {agreed} per epoch: {_WITH} and "
        "lighthouse that is not supported, since for the rest of each epoch this site would add nothing to sums that "
        f"would then be of fewer sites; give it at least {agreed} batches: more rows, or smaller batches",
    )
