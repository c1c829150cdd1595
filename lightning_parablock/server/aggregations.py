"""The choices of the option ``aggregation``: how the deltas become their mean. They do not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from typing_extensions import override

from lightning_parablock.checks import check_int, chosen, require

AggregationName = Literal["mean", "secure"]
LEAST_SITES = 3


@dataclass(frozen=True)
class Aggregation:
    """What clients send of their deltas, and what a server learns of them. Base of the choices below."""

    @property
    def is_lossy(self) -> bool:
        """Whether it leaves out a part of the deltas, so that error feedback keeps that for later."""
        return False

    @property
    def takes_short_rounds(self) -> bool:
        """Whether the last round of a run is aggregated although it has fewer local steps than the others."""
        return True


@dataclass(frozen=True)
class MeanAggregation(Aggregation):
    """Each client's delta travels by itself, and the server of a shard adds them up."""


@dataclass(frozen=True)
class SecureAggregation(Aggregation):
    """Each site sends whole numbers under masks that cancel in the sum over all sites, which alone can be read.

    Args:
        bytes_per_value: 1 or 2. With 1, weights are uniform and at most 16 clients train in a round; with 2, at most
            256, and differences between values have 256 times as many steps.
        min_sites: Least number of sites in a sum, 3 or more: with 2, each would learn the other's contribution.
    """

    bytes_per_value: int = 1
    min_sites: int = LEAST_SITES

    def __post_init__(self) -> None:
        require(
            self.bytes_per_value in (1, 2), f"aggregation bytes_per_value must be 1 or 2, got {self.bytes_per_value!r}"
        )
        check_int("aggregation min_sites", self.min_sites, at_least=LEAST_SITES, unit="sites in a sum")

    @property
    @override
    def is_lossy(self) -> bool:
        return True

    @property
    @override
    def takes_short_rounds(self) -> bool:
        """A resumed run repeats the round as a whole, and two sums would show what was trained in between."""
        return False


AGGREGATIONS: dict[str, type[Aggregation]] = {"mean": MeanAggregation, "secure": SecureAggregation}


def resolve_aggregation(value: AggregationName | Aggregation) -> Aggregation:
    """Turn a name ("mean", "secure") or an object with its own settings into the object."""
    return chosen("aggregation", value, Aggregation, AGGREGATIONS)
