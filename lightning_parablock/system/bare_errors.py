"""An error without its frames, for what outlives the place where it was raised."""

from __future__ import annotations

from typing import TypeVar

E = TypeVar("E", bound=BaseException)


def bare(error: E) -> E:
    """The same error, and those that led to it, without tracebacks.

    A traceback keeps the variables of all functions that were running, and one of them often leads back to the error:
    then nothing but the garbage collector, which seldom looks at all there is, frees what they hold.
    """
    waiting: list[BaseException | None] = [error]
    seen = set[int]()
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            one.__traceback__ = None
            waiting += [one.__cause__, one.__context__]
    return error
