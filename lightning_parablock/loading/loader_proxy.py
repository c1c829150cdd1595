"""A loader in front of another one, for which it passes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


class LoaderProxy:
    """Behaves like a loader in everything but what a subclass changes, and its length, which a subclass may give.

    Args:
        loader: A DataLoader or another iterable of batches; attributes are read from it and set on it.
        **own: Attributes of the proxy itself.
    """

    def __init__(self, loader: Any, **own: Any) -> None:
        self.__dict__.update(_loader=loader, **own)

    @property
    def __class__(self) -> Any:  # type: ignore[override]
        """The loader's class, so that it passes for one."""
        return self._loader.__class__

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._loader, name, value)

    def __iter__(self) -> Iterator[Any]:
        yield from self._loader
