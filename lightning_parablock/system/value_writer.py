"""Values as JSON, and the bytes beside it.

None, truth values, short texts, lists, and numbers that JSON has exactly are themselves. Anything else is an object of
one pair, the name of its kind and what describes it; the bytes of long texts, tensors and arrays follow the JSON, in
the order in which the values are in it. So the JSON says how many bytes there must be, no byte counts twice, and
nothing can contain itself.
"""

from __future__ import annotations

import math
import pathlib
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lightning_parablock.system.plain_records import name_of_record, values_of
from lightning_parablock.system.tensor_bytes import DTYPES, bytes_of, name_of

MOST_DEPTH = 100
"""How deeply containers may be nested."""
MOST_ODD_KEYS = 1 << 17
"""Most keys of one dict or set that are neither texts nor bytes: their hashes can be chosen so that they collide."""
EXACT = 1 << 63
"""Whole numbers below it, and above its negative, are numbers of the JSON."""

ARRAY_TYPES = {np.dtype(order + code).str for code in "?bBhHiIlLqQefdFD" for order in "<>"}
"""Types of NumPy's numbers and arrays."""
PATHS = {kind.__name__: kind for kind in (pathlib.PosixPath, pathlib.PurePosixPath, pathlib.PureWindowsPath)}
MAPPINGS: dict[str, type[dict[Any, Any]]] = {"dict": dict, "ordered": OrderedDict, "counter": Counter}

_MAPPING_NAMES = {kind: name for name, kind in MAPPINGS.items()}
_LONG_TEXT = 64


class ForeignError(Exception):
    """A value holds something that cannot be sent.

    Attributes:
        keys: Where it is, from the outside in.
        why: What it is.
    """

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why, self.keys = why, list[str]()


class ValueWriter:
    """Writes one value.

    Attributes:
        parts: The bytes beside the JSON, in their order; memory of the value's own tensors and arrays.
    """

    def __init__(self) -> None:
        self.parts = list[bytes | bytearray | memoryview]()
        self._tensors = dict[tuple[Any, ...], int]()
        self._kept = list[Tensor]()  # so that no other tensor comes to have the memory of one that was written

    def written(self, value: Any, depth: int = 0) -> Any:
        """The value as JSON has it.

        Raises:
            ForeignError: it holds something that cannot be sent.
        """
        kind = type(value)
        if (kind is str and len(value) <= _LONG_TEXT) or value is None or kind is bool:
            return value
        if kind is int:
            return value if -EXACT < value < EXACT else {"int": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"float": struct.pack("<d", value).hex()}
        if depth == MOST_DEPTH:
            raise ForeignError(f"it nests deeper than {MOST_DEPTH} levels")
        if kind is list:
            return self.each(enumerate(value), depth)
        other = _write_number if isinstance(value, np.generic) else _write_record
        return _WRITERS.get(kind, other)(self, value, depth)

    def each(self, items: Iterable[tuple[object, Any]], depth: int) -> list[Any]:
        """The values of pairs of a key and a value."""
        found = list[Any]()
        for key, item in items:
            try:
                found.append(self.written(item, depth + 1))
            except ForeignError as error:
                error.keys.insert(0, str(key))
                raise
        return found

    def beside(self, name: str, data: bytes | bytearray) -> Any:
        """A value that is bytes."""
        self.parts.append(data)
        return {name: len(data)}

    def number_of(self, value: Tensor, order: list[int]) -> int:
        """Which of the tensors in the message has the same memory, as tied weights have; adds it where it is new."""
        place = (value.device, value.data_ptr(), value.dtype, tuple(value.shape), value.stride(), value.is_conj())
        number = self._tensors.get(place)
        if number is None or value.numel() == 0:
            number = self._tensors[place] = len(self._kept)
            self._kept.append(value)
            self.parts.append(bytes_of(value.permute(order)))
        return number


def _write_tuple(writer: ValueWriter, value: tuple[Any, ...], depth: int) -> Any:
    return {"tuple": writer.each(enumerate(value), depth)}


def _write_set(writer: ValueWriter, value: set[Any], depth: int) -> Any:
    _refuse_many_odd(value)
    return {"set": writer.each(enumerate(value), depth)}


def _write_mapping(writer: ValueWriter, value: dict[Any, Any], depth: int) -> Any:
    _refuse_many_odd(value)
    pairs = ((key, part) for key, item in value.items() for part in (key, item))
    return {_MAPPING_NAMES[type(value)]: writer.each(pairs, depth)}


def _write_record(writer: ValueWriter, value: Any, depth: int) -> Any:
    name = name_of_record(type(value))
    if name is None:
        raise ForeignError(f"is a {type(value).__module__}.{type(value).__qualname__}")
    return {"record": [name, writer.each(enumerate(values_of(value)), depth)]}


def _write_path(writer: ValueWriter, value: pathlib.PurePath, depth: int) -> Any:
    return {"path": [type(value).__name__, writer.written(str(value), depth + 1)]}


def _write_number(writer: ValueWriter, value: Any, depth: int) -> Any:
    array = _numbers(np.asarray(value))
    writer.parts.append(array.tobytes())
    return {"number": array.dtype.str}


def _write_array(writer: ValueWriter, value: Any, depth: int) -> Any:
    array = _numbers(value)
    is_fortran = bool(array.flags.f_contiguous and not array.flags.c_contiguous)
    writer.parts.append(array.tobytes("F" if is_fortran else "C"))
    return {"array": [array.dtype.str, list(array.shape), is_fortran]}


def _numbers(array: Any) -> Any:
    if array.dtype.str not in ARRAY_TYPES:
        raise ForeignError(f"is a numpy array of {array.dtype}")
    return array


def _write_tensor(writer: ValueWriter, value: Tensor, depth: int) -> Any:
    if value.layout is not torch.strided or value.is_quantized or value.is_meta or value.is_nested:
        raise ForeignError(f"is a tensor without plain values ({value.layout}, {value.dtype}, {value.device})")
    if value.dtype not in DTYPES.values():
        raise ForeignError(f"is a tensor of {value.dtype}")
    order = _order(value)
    flags = [value.requires_grad, type(value) is nn.Parameter, value.device.type != "cpu"]
    return {"tensor": [writer.number_of(value, order), name_of(value.dtype), list(value.shape), order, flags]}


def _order(value: Tensor) -> list[int]:
    """Its dimensions as they are in memory, the outermost first; their own order where there are gaps."""
    own = list(range(value.dim()))
    found = sorted(own, key=lambda one: -value.stride(one))
    return own if value.is_contiguous() or not value.permute(found).is_contiguous() else found


def _refuse_many_odd(keys: Iterable[Any]) -> None:
    if sum(type(key) is not str and type(key) is not bytes for key in keys) > MOST_ODD_KEYS:
        raise ForeignError(f"has more than {MOST_ODD_KEYS} keys that are no texts")


_Write = Callable[[ValueWriter, Any, int], Any]
_WRITERS: dict[type, _Write] = {
    str: lambda writer, value, depth: writer.beside("text", value.encode("utf-8", "surrogatepass")),
    bytes: lambda writer, value, depth: writer.beside("bytes", value),
    bytearray: lambda writer, value, depth: writer.beside("bytearray", value),
    complex: lambda writer, value, depth: {"complex": struct.pack("<dd", value.real, value.imag).hex()},
    tuple: _write_tuple,
    set: _write_set,
    torch.dtype: lambda writer, value, depth: {"dtype": name_of(value)},
    torch.device: lambda writer, value, depth: {"device": str(value)},
    torch.Size: lambda writer, value, depth: {"size": list(value)},
    np.ndarray: _write_array,
    **dict.fromkeys((Tensor, nn.Parameter), _write_tensor),
    **dict.fromkeys(MAPPINGS.values(), _write_mapping),
    **dict.fromkeys(PATHS.values(), _write_path),
}
