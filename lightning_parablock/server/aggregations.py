"""The choices of the option ``aggregation``: how the deltas become their mean. They do not need torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lightning_parablock.checks import chosen

AggregationName = Literal["mean"]


@dataclass(frozen=True)
class Aggregation:
    """What clients send of their deltas, and what a server learns of them. Base of the choices below."""


@dataclass(frozen=True)
class MeanAggregation(Aggregation):
    """Each client's delta travels by itself, and the server of a shard adds them up."""


AGGREGATIONS: dict[str, type[Aggregation]] = {"mean": MeanAggregation}


def resolve_aggregation(value: AggregationName | Aggregation) -> Aggregation:
    """Turn a name ("mean") or an object with its own settings into the object."""
    return chosen("aggregation", value, Aggregation, AGGREGATIONS)
