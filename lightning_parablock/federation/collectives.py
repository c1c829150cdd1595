"""What the rest of the package asks of the ranks of a run, whichever strategy or test double provides it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar, runtime_checkable

T = TypeVar("T")

Gather = Callable[[Any], Sequence[Any]]
"""Collects a value from every rank, in rank order; collective."""


@runtime_checkable
class Gathering(Protocol):
    """Ranks that exchange Python objects."""

    def gather_objects(self, value: T) -> list[T]:
        """The value of every rank, in rank order; collective."""
        ...


class Collectives(Gathering, Protocol):
    """The ranks of a run: which one this is, how the others are named, and how all of them exchange objects."""

    @property
    def global_rank(self) -> int:
        """This rank, numbered from 0."""
        ...

    @property
    def world_size(self) -> int:
        """Number of ranks."""
        ...

    @property
    def site_names(self) -> tuple[str, ...]:
        """For each rank the name of its site; empty where sites have no names."""
        ...

    def describe(self, rank: int) -> str:
        """A rank in words, for messages."""
        ...

    def broadcast(self, obj: T, src: int = 0) -> T:
        """The object of rank ``src``, on every rank; collective."""
        ...
