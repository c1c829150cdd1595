"""The options that say what a client does between two exchanges."""

from __future__ import annotations

from typing import Any, Literal

from lightning_parablock.checks import above_zero, require, whole
from lightning_parablock.options import OptionGroup, option, record

BlockOptimizerState = Literal["reset", "offload", "keep"]
Buffers = Literal["local", "average"]
NonfiniteDelta = Literal["stop", "skip"]


def _check_weight(name: str, value: Any) -> None:
    require(
        isinstance(value, (int, float)) and 0 <= value < float("inf"),
        f"{name} must be a finite number >= 0, got {value!r}",
    )


@record
class LocalOptions(OptionGroup):
    """Local training."""

    block_optimizer_state: BlockOptimizerState = option(
        default="reset",
        help='What happens to the client\'s optimizer state of a block after its round: "reset", "offload" or '
        '"keep". "reset" drops it; "offload" keeps it in host memory until the block is trained again; "keep" keeps '
        "it on the device.",
    )
    local_warmup_steps: int = option(
        default=0,
        check=whole(0, "optimizer steps of each round"),
        help="Optimizer steps at the start of each round over which the client's learning rate rises linearly to its "
        "full value. For optimizers whose state has been reset.",
    )
    proximal_mu: float = option(
        default=0.0,
        check=_check_weight,
        help="Weight mu of FedProx's proximal term (arXiv 1812.06127), dimensionless; 0 turns it off. The distance "
        "from the round's start times mu is added to the gradient, in float32, before it is clipped.",
    )
    own_local_steps: int | None = option(
        default=None,
        kind="own",
        check=whole(1, "optimizer steps of each round", or_none=True),
        help="How many local steps per round this rank's clients actually run (for slow machines); None means all. "
        "They skip the remaining steps and the batches that go with them. Ranks may have different values.",
    )
    own_local_s: float | None = option(
        default=None,
        kind="own",
        check=above_zero("seconds", none="no limit"),
        help="Seconds per round after which a client skips the remaining local steps; None means no limit. What it "
        "computes then depends on its speed, so the run cannot be repeated bit for bit.",
    )
    buffers: Buffers = option(
        default="local",
        help='How buffers are treated, such as the running statistics of BatchNorm: "local" or "average". "local" '
        "keeps each client's own, and a checkpoint has the first client's; \"average\" shows the clients' mean "
        "wherever the committed model is shown (validation, checkpoints, the end of fit) and returns each client's "
        "own to it for further training.",
    )
    nonfinite_delta: NonfiniteDelta = option(
        default="stop",
        help='Treatment of a client whose delta contains NaN or infinity at the end of a round: "stop" or "skip". '
        '"stop" ends the run with an error that names client, round and block; "skip" gives the client no weight in '
        "the round's mean, warns, and counts it in the records: the client's block, error feedback and buffers return "
        "to their values at the round's start, and its optimizer state of the block is reset.",
    )
