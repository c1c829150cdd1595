"""Values that ranks and sites send each other beside the exchange: bytes and back, without running code of a peer.

What travels are tensors, plain values, paths, plain containers of them, and records of this package (frozen
dataclasses that check nothing, and named tuples), which hold such values themselves. Anything else is refused where it
is to be sent, and again where it arrives.
"""

from __future__ import annotations

import dataclasses
import importlib
import io
import pathlib
import pickle
import zipfile
from collections.abc import Sequence
from typing import Any

import torch

from lightning_parablock.errors import ConfigurationError, ProtocolError
from lightning_parablock.system.plain_values import first_foreign, numpy_numbers

_PACKAGE = "lightning_parablock."
_PATHS = (pathlib.PosixPath, pathlib.PurePosixPath, pathlib.WindowsPath, pathlib.PureWindowsPath)


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
        f"{what}: {foreign}; ranks and sites send each other tensors and plain values alone (numbers, texts, paths, "
        "lists, dicts), so that none of them can make another run code"
    )


def from_bytes(data: bytes, what: str, device: torch.device | str = "cpu") -> Any:
    """The value that :func:`to_bytes` was given.

    Args:
        data: Its bytes.
        what: Names it in messages.
        device: Where tensors come that were not in host memory; the others stay there.

    Raises:
        ProtocolError: the bytes are something else.
    """
    buffer = io.BytesIO(data)

    def place(storage: Any, location: str) -> Any:
        return storage if location == "cpu" else storage.to(device=torch.device(device))

    try:
        _refuse_more_than_came(buffer)
        with numpy_numbers(), torch.serialization.safe_globals(list(_records(buffer))):
            return torch.load(buffer, map_location=place, weights_only=True)
    except Exception as error:
        first = (str(error).splitlines() or [type(error).__name__])[0]
        raise ProtocolError(f"{what}: a peer sent what is no plain value: {first}") from error


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


def _refuse_more_than_came(buffer: io.BytesIO) -> None:
    """Refuse what would take more memory than it has bytes: parts that are packed, and torch's format of old."""
    with zipfile.ZipFile(buffer) as archive:
        parts = archive.infolist()
    is_packed = any(part.compress_type != zipfile.ZIP_STORED for part in parts)
    if is_packed or sum(part.file_size for part in parts) > buffer.getbuffer().nbytes:
        raise ProtocolError("it states more bytes than it has")
    buffer.seek(0)


def _records(buffer: io.BytesIO) -> Sequence[type]:
    return [record for name in _globals(buffer) if (record := _record(name)) is not None]


def _globals(buffer: io.BytesIO) -> list[str]:
    buffer.seek(0)
    names = torch.serialization.get_unsafe_globals_in_checkpoint(buffer)
    buffer.seek(0)
    return names


def _record(name: str) -> type | None:
    """The class of that name, if loading one of its values only assigns fields."""
    if name == "builtins.bytes":  # as which empty ones are written
        return bytes
    module, _, kind = name.rpartition(".")
    path = next((one for one in _PATHS if one.__name__ == kind and module.partition(".")[0] == "pathlib"), None)
    if path is not None or not module.startswith(_PACKAGE):
        return path
    try:
        found: Any = getattr(importlib.import_module(module), kind, None)
    except ImportError:
        return None
    is_tuple = isinstance(found, type) and issubclass(found, tuple) and hasattr(found, "_fields")
    return found if is_tuple or _only_assigns(found) else None


def _only_assigns(found: Any) -> bool:
    """Whether it is a frozen dataclass whose creation does nothing else: a peer chooses the class and the values."""
    if not (isinstance(found, type) and dataclasses.is_dataclass(found)):
        return False
    parameters: Any = vars(found).get("__dataclass_params__")
    return parameters is not None and parameters.frozen and not hasattr(found, "__post_init__")
