"""The options that say which blocks there are and in which order they are trained."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, cast

from lightning_parablock.checks import check_pattern, require
from lightning_parablock.options import OptionGroup, keeps, option, record
from lightning_parablock.system.units import parse_bytes

AUTO: Literal["auto"] = "auto"
BlockOrder = Literal["sequential", "reverse", "shuffle", "random", "importance", "cyclic"]
BlocksSpec = Literal["layers", "auto"] | int | list[str]
Unmatched = Literal["error", "freeze"]


def resolve_blocks(value: BlocksSpec) -> str | int | tuple[str, ...]:
    """Normalize the option ``blocks``: a list of patterns becomes a tuple, so that settings stay hashable."""
    return tuple(value) if isinstance(value, Sequence) and not isinstance(value, str) else value


# The formula of the planner counts in float, too: what has been converted is a number, which stays as it is.
def _bytes(given: str | float | None) -> float | None:
    return None if given is None else parse_bytes("memory", given)


@keeps(tuple)
def _pairs(given: dict[str, float] | None) -> tuple[tuple[str, float], ...]:
    return tuple((given or {}).items())


def _check_blocks(name: str, blocks: Any) -> None:
    if isinstance(blocks, str):
        require(
            blocks in ("layers", AUTO),
            f"{name}={blocks!r} is not known; choose 'layers', 'auto', a whole number of blocks, or a list of patterns"
            + (f" such as ['{blocks}']" if blocks else ""),
        )
        return
    if isinstance(blocks, int) and not isinstance(blocks, bool):
        require(blocks >= 1, f"{name} must be at least 1, got {blocks}")
        return
    require(
        isinstance(blocks, tuple) and len(blocks) > 0,
        f"{name} must be 'layers', 'auto', a whole number of blocks, or a list of at least one pattern, got {blocks!r}",
    )
    for pattern in cast(tuple[Any, ...], blocks):
        check_pattern(name, pattern)


@record
class BlockOptions(OptionGroup):
    """The blocks and their order."""

    blocks: str | int | tuple[str, ...] = option(
        default="layers",
        converter=resolve_blocks,
        check=_check_blocks,
        help='How the parameters are divided into blocks: "layers", "auto", a number of blocks, or a list of regular '
        'expressions. "layers" makes one block per repeated layer (of a list of modules, or of an LSTM), one for the '
        "parameters before the layers (embeddings) and one for those after them (head); a tiny block joins its "
        "neighbor. A number makes that many runs of neighboring layers with about equally many bytes. With "
        '"auto" the clients agree, before the first round, on the smallest number whose memory fits; a resumed run '
        "keeps it. A list makes one block per regular expression, which is searched for in the parameter names.",
    )
    memory: float | None = option(
        default=None,
        converter=_bytes,
        kind="own",
        help='Memory of this client\'s device for blocks="auto", without activations, such as 24gb (or a number of '
        "bytes); None means three quarters of what the device has free. It is for weights, the block in training and "
        "the exchanges in flight, and on a CPU also for what is kept in host memory.",
    )
    unmatched: Unmatched = option(
        default="error",
        help='Treatment of trainable parameters that no pattern of blocks matches: "error" or "freeze". "error" stops '
        'before training; "freeze" never trains them.',
    )
    block_order: BlockOrder = option(
        default="shuffle",
        help='Which block each round trains: "sequential", "reverse", "shuffle", "random", "importance" or "cyclic". '
        '"shuffle" draws a new permutation for every pass over the blocks; "random" draws a block in every round; '
        '"importance" draws, after a first pass, in proportion to the blocks\' gradient norms, which arrive with '
        "each block's latest merged exchange; with \"cyclic\" client i trains the i-th block after the round's, so "
        "that a round has several exchanges.",
    )
    visit_more: tuple[tuple[str, float], ...] = option(
        default=None,
        converter=_pairs,
        help='Blocks to draw more often with "random" and "importance", such as {"embed|head": 4}. Each key is a '
        "pattern that is searched for in the block names, each value the factor.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.memory is None or self.blocks == AUTO,
            f"memory decides how many blocks blocks='auto' makes, and blocks is {self.blocks!r}; leave one of them out",
        )
        require(
            not self.visit_more or self.block_order in ("random", "importance"),
            f"visit_more needs block_order 'random' or 'importance', where rounds are drawn, got {self.block_order!r}",
        )
        for pattern, factor in self.visit_more:
            check_pattern("visit_more", pattern)
            require(
                isinstance(cast(Any, factor), (int, float)) and 0 < factor < float("inf"),
                f"visit_more: the factor of {pattern!r} must be a finite number > 0, got {factor!r}",
            )
