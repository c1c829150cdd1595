"""Names the verbs of a round in the traces of torch.profiler."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from torch.profiler import record_function

P = ParamSpec("P")
R = TypeVar("R")


def profiled(verb: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate a function so that it runs within the profiler range "parablock::" + ``verb``.

    Each call opens a range of its own: torch's own decorator shares one among all threads and nested calls.
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(function)
        def within_range(*args: P.args, **kwargs: P.kwargs) -> R:
            with record_function(f"parablock::{verb}"):
                return function(*args, **kwargs)

        return within_range

    return decorate
