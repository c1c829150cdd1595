"""Values that sites send each other beside the exchange: bytes and back, without a pickle that could run code.

What travels are tensors, plain values, plain containers of them, and records of this package (dataclasses and named
tuples), which hold such values themselves. Anything else is refused where it is to be sent.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import pickle
from collections.abc import Sequence
from typing import Any

import torch

from lightning_parablock.checkpointing.plain_values import first_foreign, numpy_numbers
from lightning_parablock.errors import ConfigurationError, ProtocolError

_PACKAGE = "lightning_parablock."


def to_bytes(value: Any, what: str) -> bytes:
    """The bytes of a value.

    Args:
        value: Tensors, plain values and records of this package.
        what: Names it in messages.

    Raises:
        ConfigurationError: it holds something else; names what.
    """
    buffer = io.BytesIO()
    with numpy_numbers():
        foreign = _why_foreign(value, buffer)
    if foreign is None:
        return buffer.getvalue()
    raise ConfigurationError(
        f"{what}: {foreign}; with elastic membership sites send each other tensors and plain values alone (numbers, "
        "texts, lists, dicts), so that none of them can make another run code"
    )


def from_bytes(data: bytes, what: str) -> Any:
    """The value that :func:`to_bytes` was given, with its tensors in host memory.

    Raises:
        ProtocolError: the bytes are something else.
    """
    buffer = io.BytesIO(data)
    try:
        with numpy_numbers(), torch.serialization.safe_globals(list(_records(buffer))):
            return torch.load(buffer, map_location="cpu", weights_only=True)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProtocolError(f"{what}: another site sent what is no plain value: {first}") from error


def _why_foreign(value: Any, buffer: io.BytesIO) -> str | None:
    """Write the value, and say what in it is not plain."""
    try:
        torch.save(value, buffer)
    except (pickle.PicklingError, AttributeError, TypeError) as error:  # pickle may raise any of these
        return str(error)
    unknown = [name for name in _globals(buffer) if _record(name) is None]
    if not unknown:
        return None
    found = first_foreign(value)
    return f"a {unknown[0]} in it" if found is None else f"{found[0] or 'it'} is a {found[1]}"


def _records(buffer: io.BytesIO) -> Sequence[type]:
    return [record for name in _globals(buffer) if (record := _record(name)) is not None]


def _globals(buffer: io.BytesIO) -> list[str]:
    buffer.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    buffer.seek(0)
    return names


def _record(name: str) -> type | None:
    """The class of that name, if it is plain or a record of this package, of which loading sets the fields alone."""
    if name == "builtins.bytes":  # as which empty ones are written
        return bytes
    module, _, kind = name.rpartition(".")
    if not module.startswith(_PACKAGE):
        return None
    try:
        found: Any = getattr(importlib.import_module(module), kind, None)
    except ImportError:
        return None
    is_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    return found if dataclasses.is_dataclass(found) or is_tuple else None
