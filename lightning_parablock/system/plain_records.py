"""Records of this package that may travel between ranks and sites: those whose creation only assigns fields.

A peer chooses the class and the values, so no code of a class may run.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import Any

from lightning_parablock.errors import ProtocolError

_PACKAGE = "lightning_parablock."


def name_of_record(kind: type) -> str | None:
    """The name of a class of records; None if its values cannot travel."""
    name = f"{kind.__module__}.{kind.__qualname__}"
    return name if _found(name) is kind else None


def values_of(record: Any) -> list[Any]:
    """The fields of a record, in the order of its class."""
    return [getattr(record, name) for name in _names(type(record))]


def record_of(name: object, values: Sequence[Any]) -> Any:
    """The record that has these fields.

    Args:
        name: Of its class, from a peer. A module that is not loaded is not loaded for it either.
        values: Of the fields, in the order of the class.

    Raises:
        ProtocolError: there is no such class, or its fields are others.
    """
    kind: Any = _found(name) if isinstance(name, str) else None
    if kind is None:
        raise ProtocolError(f"{name!r:.100} is no record of this process")
    names = _names(kind)
    if len(names) != len(values):
        raise ProtocolError(f"a {name} has {len(names)} fields, and {len(values)} have come")
    return kind(**dict(zip(names, values, strict=True)))


def _found(name: str) -> type | None:
    module, _, kind = name.rpartition(".")
    loaded = sys.modules.get(module) if module.startswith(_PACKAGE) else None
    found = vars(loaded).get(kind) if loaded is not None else None
    if not isinstance(found, type) or (found.__module__, found.__qualname__) != (module, kind):
        return None
    return found if _only_assigns(found) else None


def _only_assigns(found: type) -> bool:
    if issubclass(found, tuple):
        return found.__bases__ == (tuple,) and hasattr(found, "_fields") and "_make" in vars(found)
    parameters: Any = vars(found).get("__dataclass_params__")
    if found.__new__ is not object.__new__:
        return False
    is_frozen = dataclasses.is_dataclass(found) and parameters is not None and parameters.frozen and parameters.init
    return is_frozen and not hasattr(found, "__post_init__") and all(one.init for one in dataclasses.fields(found))


def _names(kind: Any) -> list[str]:
    return [field.name for field in dataclasses.fields(kind)] if dataclasses.is_dataclass(kind) else list(kind._fields)
