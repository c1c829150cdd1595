"""What a checkpoint may hold: tensors and plain values, and NumPy's numbers and arrays beside them."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

_NUMBER_CODES = "?bBhHiIlLqQefdFD"
_PLAIN = (type(None), bool, int, float, complex, str, bytes, bytearray, torch.dtype, torch.device, torch.Size)
_CONTAINERS = (dict, OrderedDict, Counter, list, tuple, set)


@contextmanager
def numpy_numbers() -> Generator[None]:
    """Let ``torch.load(weights_only=True)`` read NumPy's numbers and arrays: data, no code.

    A learning rate computed with NumPy is one, and what is restored must have its type: float32 times float is float32.
    """
    functions: list[Any] = [np.float64(1).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    dtypes: list[Any] = [type(np.dtype(code)) for code in _NUMBER_CODES]
    with torch.serialization.safe_globals([*functions, np.dtype, np.ndarray, *dtypes]):
        yield


def without_numpy_numbers(value: Any) -> Any:
    """The value with NumPy's scalars, inside plain containers too, as Python's: for readers without this package."""
    kind: Any = type(value)
    if issubclass(kind, np.generic) or (kind is np.ndarray and value.ndim == 0):
        return value.item()
    if kind in (dict, OrderedDict):
        return kind((key, without_numpy_numbers(item)) for key, item in value.items())
    if kind in (list, tuple):
        return kind(without_numpy_numbers(item) for item in value)
    return value


def first_foreign(value: Any, name: str = "") -> tuple[str, str] | None:
    """Key and type of the first thing that ``torch.load(weights_only=True)`` does not read; None where there is none.

    Args:
        value: What is to be saved.
        name: Its key; keys are joined by dots.
    """
    if type(value) in _CONTAINERS:
        items = cast(Mapping[Any, Any], value).items() if isinstance(value, dict) else enumerate(value)
        return next((found for key, item in items if (found := first_foreign(item, f"{name}.{key}".strip(".")))), None)
    if type(value) in _PLAIN or isinstance(value, (Tensor, np.ndarray, np.generic)) or _is_allowed(type(value)):
        return None
    return name, f"{type(value).__module__}.{type(value).__qualname__}"


def _is_allowed(kind: type) -> bool:
    allowed = torch.serialization.get_safe_globals()
    return any(kind is (entry[0] if isinstance(entry, tuple) else entry) for entry in allowed)
