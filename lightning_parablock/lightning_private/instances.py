"""Methods of Lightning's objects, replaced on the instance."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def replace_method(instance: object, name: str, replacement: Callable[..., Any]) -> None:
    """Replace a method of one object; the class keeps its own, which the replacement may call.

    Raises:
        AttributeError: the class has no such method, so that nothing would call the replacement.
    """
    getattr(type(instance), name)
    setattr(instance, name, replacement)
