"""The choices of the option ``compression``: how deltas and commits are encoded on the wire. They do not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from typing_extensions import override

from lightning_parablock.checks import check_int, chosen, require
from lightning_parablock.errors import ConfigurationError

CompressionName = Literal["none", "bf16", "int8", "int4", "topk", "sparse", "low_rank"]

RECORD_SCALARS = 1024
"""Shards and chunks of a block begin at multiples of this number of scalars, and quantization groups divide it."""
SPARSE_GROUPS = (16, 32, 64)
"""Groups of which eight codes fit into 64 bits."""


@dataclass(frozen=True)
class Compression:
    """Encoding of deltas and commits on the wire (docs/method.md, "Fewer bytes"). Base of the choices below."""

    @property
    def is_lossy(self) -> bool:
        """Whether decoded values differ from the original ones, so that error feedback keeps the difference."""
        return True

    @property
    def feedback_decay(self) -> float:
        """Share of what earlier messages left out that error feedback adds to the next one: 1 loses nothing."""
        return 1.0

    @property
    def of_values(self) -> Compression:
        """How the single values of a message are encoded: as the choice says, unless it is about whole matrices."""
        return self


@dataclass(frozen=True)
class NoCompression(Compression):
    """The float32 values themselves."""

    @property
    @override
    def is_lossy(self) -> bool:
        return False


@dataclass(frozen=True)
class BF16(Compression):
    """Each value rounded to bfloat16, half to even: 2 times fewer bytes."""


@dataclass(frozen=True)
class Int8(Compression):
    """One byte per value, in steps of the group's largest magnitude / 127: 3.97 times fewer bytes with groups of 256.

    Args:
        group: Number of scalars that share a step size, a divisor of 1024 and at least 4. The step is sent as bfloat16.
    """

    group: int = 256

    def __post_init__(self) -> None:
        _check_group(self.group)


@dataclass(frozen=True)
class Int4(Compression):
    """Half a byte per value, in steps of the group's largest magnitude / 7: 7.5 times fewer bytes with groups of 64.

    Args:
        group: Number of scalars that share a step size, a divisor of 1024 and at least 4. The step is sent as bfloat16.
    """

    group: int = 64

    def __post_init__(self) -> None:
        _check_group(self.group)


@dataclass(frozen=True)
class TopK(Compression):
    """Only the largest magnitudes of every 1024 scalars, 4 bytes each: 16 times fewer bytes if 1/16 of them is kept.

    Args:
        keep: Fraction of the scalars that is sent, in (0, 1]; at least one of every 1024.
    """

    keep: float = 1 / 16

    def __post_init__(self) -> None:
        require(0 < self.keep <= 1, f"compression keep must be in (0, 1], got {self.keep}")


@dataclass(frozen=True)
class Sparse(Compression):
    """Of every 32 values the largest, in two bits, with its place: 128 times fewer bytes.

    Args:
        group: Number of scalars of which one is sent: 16 (6.3 %, 78.8 times fewer bytes), 32 (3.1 %, 128 times) or 64
            (1.6 %, 204.8 times).
        decay: Share of what earlier messages of a block left out that is added to the next one, in [0, 1]. With 1
            nothing is lost; with less, old progress fades (0.95 in SparseLoCo, arXiv 2508.15706); with 0 it is given
            up at once.
    """

    group: int = 32
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_int("compression group", self.group, at_least=min(SPARSE_GROUPS), unit="scalars of which one is sent")
        sizes = ", ".join(map(str, SPARSE_GROUPS))
        require(self.group in SPARSE_GROUPS, f"compression group of Sparse must be one of {sizes}, got {self.group}")
        _check_decay(self.decay)

    @property
    @override
    def feedback_decay(self) -> float:
        return self.decay


@dataclass(frozen=True)
class LowRank(Compression):
    """One factor of each matrix, in turn: 85 (a layer of SmolLM2) to 650 (one of an 8B model) times fewer bytes.

    After PowerSGD (arXiv 1905.13727). Vectors travel whole, and so do matrices that have fewer values than both factors
    together. Needs a fixed membership; every rank keeps W and the server optimizer's state of the whole model.

    Args:
        rank: Columns of a factor, at least 1: more of them bring more of each delta, for proportionally more bytes.
        decay: Share of what earlier messages of a block left out that is added to the next one, in [0, 1]; 1 loses
            nothing.
    """

    rank: int = 8
    decay: float = 1.0

    def __post_init__(self) -> None:
        check_int("compression rank", self.rank, at_least=1, unit="columns of a factor")
        _check_decay(self.decay)

    @property
    @override
    def feedback_decay(self) -> float:
        return self.decay

    @property
    @override
    def of_values(self) -> Compression:
        return NoCompression()


COMPRESSIONS: dict[str, type[Compression]] = {
    "none": NoCompression,
    "bf16": BF16,
    "int8": Int8,
    "int4": Int4,
    "topk": TopK,
    "sparse": Sparse,
    "low_rank": LowRank,
}


def resolve_compression(value: CompressionName | Compression) -> Compression:
    """Turn a name of ``COMPRESSIONS`` or an object with its own settings into the object."""
    return chosen("compression", value, Compression, COMPRESSIONS)


def _check_decay(decay: float) -> None:
    require(0 <= decay <= 1, f"compression decay must be in [0, 1], got {decay}")


def _check_group(group: Any) -> None:
    check_int("compression group", group, at_least=4, unit="scalars that share a step")
    if RECORD_SCALARS % group:
        nearest_group = min(1 << group.bit_length() - 1, RECORD_SCALARS)
        raise ConfigurationError(f"compression group must divide {RECORD_SCALARS}, got {group}; try {nearest_group}")


AUTO_CODECS: tuple[Compression, ...] = (NoCompression(), BF16(), Int8(), Int4())
"""What ``compression="auto"`` chooses from and plans recommend, least lossy first.

Not among them are topk, sparse and low_rank: what they lose depends on how often a block is visited (docs/planner.md).
"""
