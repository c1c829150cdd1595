"""The options that concern a fit as a whole: epochs of unequal length, resuming, and the seed."""

from __future__ import annotations

from typing import Literal

from lightning_parablock.checks import whole
from lightning_parablock.options import OptionGroup, option, record

MissingClientState = Literal["error", "fresh"]
UnevenClients = Literal["go_on", "shorten"]


def _or_zero(given: int | None) -> int:
    return 0 if given is None else given


@record
class FitOptions(OptionGroup):
    """The fit."""

    uneven_clients: UnevenClients = option(
        default="go_on",
        help='Length of an epoch if clients have different numbers of training batches: "go_on" or "shorten". "go_on" '
        "makes it as long as the longest client's data, and a client that has used up its data has no weight in the "
        'remaining rounds of the epoch; "shorten" makes it as long as the shortest.',
    )
    missing_client_state: MissingClientState = option(
        default="error",
        help='What fit does with a checkpoint whose client state is torn, missing or from another run: "error" or '
        '"fresh". "error" stops before training; "fresh" continues from the committed model, with clients that start '
        "the round from scratch.",
    )
    seed: int = option(
        default=None,
        converter=_or_zero,
        check=whole(0, "any non-negative whole number"),
        help="Random seed for the block order and the clients' random states; None means the seed of seed_everything, "
        "or 0 without one.",
    )
